"""Folders of the Hugging Face Hub: of a repository, the files that `open_folder` reads, cached."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from dfm_jax.json_text import read_json

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def names_repository(path: Path | str) -> bool:
    """Whether it is a text of the form org/name, and nothing is there on this machine."""
    return isinstance(path, str) and bool(_NAME.fullmatch(path)) and not Path(path).exists()


def downloaded(
    name: str, revision: str | None, *, first: tuple[str, ...], index: str, weights: str
) -> Path:
    """The folder in the cache of huggingface_hub that holds the files of a repository.

    First come the small files, then the weights: those that the index names, if there is an index.
    Files that are there already are not fetched again.

    Args:
        name: The name of the repository, org/name.
        revision: A branch, a tag or a commit; by default the main branch.
        first: The names of small files; those that the repository lacks are left out.
        index: The name of the file that names the parts of the weights.
        weights: The name of the weights, if they are one file.

    Raises:
        ImportError: if huggingface_hub is not installed; the message has the command.
        ConnectionError: if the Hub cannot be reached, and the cache does not hold the files.
        PermissionError: if the repository asks for consent, or for a login.
        FileNotFoundError: if there is no such repository or revision.
        ValueError: if the name cannot be that of a repository.
    """
    if find_spec("huggingface_hub") is None:
        raise ImportError(
            f"The repository {name} needs the package `huggingface_hub`, which is not installed: "
            "`pip install 'dfm_jax[hub]'`.",
            name="huggingface_hub",
        )
    from huggingface_hub import snapshot_download

    def fetched(revision: str | None, files: list[str]) -> Path:
        with _refusals(name, revision):
            return Path(snapshot_download(name, revision=revision, allow_patterns=files))

    folder = fetched(revision, [*first, index])
    parts = _parts(folder / index) if (folder / index).is_file() else [weights]
    return fetched(folder.name, parts)  # the commit that was found, should the branch move on


def _parts(index: Path) -> list[str]:
    """The files that an index names; a wrong index is refused where the folder is read."""
    try:
        listed = read_json(index)["weight_map"].values()
        return sorted({part for part in listed if isinstance(part, str)})
    except (ValueError, LookupError, TypeError, AttributeError):
        return []


@contextmanager
def _refusals(name: str, revision: str | None) -> Iterator[None]:
    """In this context, an error of huggingface_hub becomes one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"`revision` must be a branch, a tag or a commit of {name}; got revision = "
            f"{revision!r}."
        ) from None
    except errors.GatedRepoError:
        raise PermissionError(
            f"`path` must be a repository that may be read; got path = {name!r}, whose terms must "
            "be accepted on its page, after a login."
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"`path` must be a folder, or a repository of the Hugging Face Hub; got path = "
            f"{name!r}, which does not exist or is private."
        ) from None
    except errors.HFValidationError as error:
        raise ValueError(
            f"`path` must be a folder, or the name org/name of a repository; got path = {name!r}: "
            f"{' '.join(str(error).split())}"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ConnectionError(
            f"`path` must be a folder, or lie in the cache of huggingface_hub, because the Hugging "
            f"Face Hub cannot be reached; got path = {name!r}."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise ConnectionError(
            f"The Hugging Face Hub must send the files of {name}; got status = {status}."
        ) from None
