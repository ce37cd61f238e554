"""The words of a command line before they are parsed: an option is given once."""

from collections.abc import Sequence


def check_given_once(words: Sequence[str]) -> None:
    """Refuse an option that comes twice: the parser would take the last without a word.

    Several values of one option stand behind its name: `--set seed=1 model.width=96`.

    Raises:
        ValueError: naming the option.
    """
    names = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"`{name}` must be given once, with all its values behind it; it is given "
                f"{names.count(name)} times."
            )
        if (opposite := f"--no-{name.removeprefix('--')}") in names:
            raise ValueError(f"`{name}` and `{opposite}` exclude each other; both are given.")
