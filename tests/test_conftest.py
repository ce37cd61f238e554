"""The settings that every test relies on are in force, and each can fail."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import conftest
import jax
import jax.numpy as jnp
import pytest

from dfm_jax import parallel


def draw(key):
    return jax.random.normal(key, (3,))


def draw_twice(key):
    return draw(key) + draw(key)


def scanned(fn, key):
    return jax.lax.scan(lambda c, i: (c, fn(jax.random.fold_in(key, i))), 0, jnp.arange(3))


MAPPED = {
    "eager": lambda fn: lambda keys: fn(keys[0]),
    "jit": lambda fn: lambda keys: jax.jit(fn)(keys[0]),
    "vmap": jax.vmap,
    "pmap": jax.pmap,
    "shard_map": lambda fn: parallel.independent(fn, parallel.make_mesh()),
    "scan": lambda fn: lambda keys: scanned(fn, keys[0]),
}


@pytest.mark.parametrize("transform", MAPPED.values(), ids=MAPPED)
def test_a_key_used_twice_raises(transform):
    jax.block_until_ready(transform(draw)(jax.random.split(jax.random.key(0), 8)))
    with pytest.raises(jax.errors.KeyReuseError):
        transform(draw_twice)(jax.random.split(jax.random.key(0), 8))


def test_a_key_consumed_by_one_call_is_consumed_for_the_next(key):
    draw(key)
    with pytest.raises(jax.errors.KeyReuseError):
        draw(key)


def test_every_file_that_comes_first_is_there():
    folder = Path(conftest.__file__).parent
    assert len(set(conftest.LONGEST)) == len(conftest.LONGEST)
    assert all((folder / f"test_{name}.py").is_file() for name in conftest.LONGEST)


def test_there_are_eight_devices():
    assert jax.device_count() == 8


def test_rank_promotion_raises():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_a_warning_raises():
    with pytest.raises(UserWarning, match="stop"):
        warnings.warn("stop", stacklevel=1)


def test_float64_is_off_by_default():
    assert jnp.zeros(()).dtype == jnp.float32


def test_x64(x64):
    assert jnp.zeros(()).dtype == jnp.float64


def test_strict(strict):
    assert jnp.zeros(()).dtype == jnp.float64
    with pytest.raises(ValueError, match="strict"):
        jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.float64)


def test_a_missing_data_package_skips_and_fails_in_ci(require_package, monkeypatch):
    require_package("numpy")
    monkeypatch.delenv("DFM_REQUIRE_DATA", raising=False)
    with pytest.raises(pytest.skip.Exception, match="`no-such-package` is missing"):
        require_package("no-such-package")
    monkeypatch.setenv("DFM_REQUIRE_DATA", "1")
    with pytest.raises(pytest.fail.Exception, match="`no-such-package` is missing"):
        require_package("no-such-package")


def test_a_missing_pretrained_package_skips_everywhere(pretrained_package, monkeypatch):
    pretrained_package("numpy")
    monkeypatch.setenv("DFM_REQUIRE_DATA", "1")
    with pytest.raises(pytest.skip.Exception, match="run `make install-pretrained`"):
        pretrained_package("no-such-package")


class Collected:
    """What pytest hands to the hook: a configuration and its items, and what the hook does."""

    def __init__(self, *asked: str) -> None:
        self.asked, self.left_out = asked, []
        self.hook = SimpleNamespace(pytest_deselected=lambda items: self.left_out.extend(items))

    def getoption(self, name: str) -> bool:
        return name in self.asked

    def run(self, cases: dict[str, dict]) -> dict[str, list]:
        """The marks that each case is given; `cases` are its own marks, by its name."""
        given = {name: [] for name in cases}
        items = [
            SimpleNamespace(
                nodeid=name, get_closest_marker=marks.get, add_marker=given[name].append
            )
            for name, marks in cases.items()
        ]
        conftest.pytest_collection_modifyitems(self, items)
        return {item.nodeid: given[item.nodeid] for item in items}


def test_of_a_sampled_test_every_second_case_is_quick():
    marks = {"sampled": pytest.mark.sampled(2).mark}
    cases = {f"{name}[{i}]": marks for name in ("sampled", "sampled_too") for i in "abc"}
    cases |= {f"not[{i}]": {} for i in "abc"}
    found = Collected().run(cases)
    assert list(found.values()) == [*2 * [[], ["slow"], []], [], [], []]


def test_an_exhaustive_case_runs_only_where_it_is_asked_for():
    cases = {"test[a]": {}, "test[b]": {"exhaustive": pytest.mark.exhaustive.mark}}
    usual, asked = Collected(), Collected("--exhaustive")
    assert list(usual.run(cases)) == ["test[a]"]
    assert [item.nodeid for item in usual.left_out] == ["test[b]"]
    assert list(asked.run(cases)) == ["test[a]", "test[b]"]
    assert not asked.left_out
