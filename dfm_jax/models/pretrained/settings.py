"""The settings of a config.json: each is taken once, and what nobody takes is refused by name."""

from collections.abc import Collection, Mapping
from typing import Any

from dfm_jax.checks import require


class Settings:
    """What a config says, to be taken setting by setting."""

    def __init__(self, said: Mapping[str, Any], source: str, *, without: Collection[str]) -> None:
        """Hold the settings that change a number; `without` names those that do not."""
        self._said, self._source = said, source
        self._rest = {name: value for name, value in said.items() if name not in without}

    def taken(self, name: str, *default: Any) -> Any:
        """The value of a setting; a null is as good as absent.

        Raises:
            ValueError: if there is none, and no default.
        """
        value = self._rest.pop(name, None)
        if value is None and default:
            return default[0]
        rule = f"{self._source} must hold a value of `{name}`"
        require(value is not None, rule, value)
        return value

    def count(self, name: str, *default: Any) -> int:
        """A whole number.

        Raises:
            ValueError: if it is none, or there is none and no default.
        """
        value = self.taken(name, *default)
        require(type(value) is int, f"`{name}` of {self._source} must be a whole number", value)
        return value

    def refuse_others(self, name: str, *allowed: Any) -> None:
        """Take a setting that may have these values only; absent is the last of them.

        Raises:
            ValueError: if it has another.
        """
        value = self._rest.pop(name, allowed[-1])
        shown = " or ".join(map(repr, allowed))
        require(value in allowed, f"`{name}` of {self._source} must be {shown}", value)

    def holds(self, name: str) -> bool:
        """Whether the config says anything of a setting."""
        return name in self._said

    def check_all_taken(self) -> None:
        """Check that no setting is left.

        Raises:
            ValueError: if one is; the message names it.
        """
        rule = f"{self._source} must hold known settings only"
        require(not self._rest, rule, self._rest, name="unknown settings")
