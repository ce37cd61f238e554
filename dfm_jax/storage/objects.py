"""The objects of a bucket, read and written whole, and replaced only if nobody else has done so.

A conditional write is what a file lock is on a disk. Amazon S3 calls its conditions `If-Match` and
`If-None-Match`, Google Cloud Storage `ifGenerationMatch`. The package `obstore` speaks both.

The settings come from the environment. For `s3://` these are AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and, for another server than Amazon's,
AWS_ENDPOINT_URL; if the package `boto3` is installed, the profiles that it knows are used too. For
`gs://` it is GOOGLE_APPLICATION_CREDENTIALS, the login of `gcloud`, or the account of the machine.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dfm_jax.durable import TemporaryError

SCHEMES = ("gs", "s3")
AT_ONCE = 8  # requests of one transfer
_PART = 32 * 2**20  # bytes of a part; a larger file is sent in parts
# What is asked if the environment names no credentials: the account of the machine.
_NO_LOGIN = re.compile(r"169\.254\.169\.254|metadata\.google\.internal|token request")
_OLD_LOGIN = re.compile(r"<Code>(ExpiredToken|InvalidToken)</Code>")
_REGION = re.compile(r"incorrectly configured region|<Code>AuthorizationHeaderMalformed</Code>")
_NOT_MADE = re.compile(r"status code: 501\b")
_NO_BUCKET = re.compile(r"NoSuchBucket|The specified bucket does not exist")


class Tag(NamedTuple):
    """The version of an object, as the store names it."""

    e_tag: str | None
    version: str | None


class Content(NamedTuple):
    """The bytes of an object, their version, and when they were written, in seconds since 1970."""

    content: bytes
    tag: Tag
    written: float  # by the clock of the store


class Objects:
    """The objects of a bucket; a key is a path inside the bucket, with `/`.

    Every method may raise:
        TemporaryError: if the store cannot be reached, or does not answer in time.
        ValueError: if the bucket does not exist, or the store refuses access.
    """

    def __init__(self, url: str, store: Any) -> None:
        """Use a store of obstore; `url` names it in messages."""
        self.url, self._store = url, store

    def read(self, key: str) -> Content | None:
        """The object, or None if there is none."""
        import obstore

        with self._told(key):
            try:
                found = _called(obstore.get, self._store, key)
                written = found.meta["last_modified"].timestamp()
                return Content(bytes(_called(found.bytes)), _tag(found.meta), written)
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def read_end(self, key: str, size: int, limit: int) -> bytes:
        """The last bytes, at most `limit`, of an object of `size` bytes; b"" if there is none."""
        import obstore

        if not size:
            return b""
        with self._told(key):
            try:
                return bytes(
                    _called(
                        obstore.get_range, self._store, key, start=max(0, size - limit), end=size
                    )
                )
            except FileNotFoundError as error:
                self._check_bucket(error)
                return b""

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        import obstore

        with self._told(key):
            try:
                _called(obstore.head, self._store, key)
            except FileNotFoundError:
                return False
            return True

    def create(self, key: str, content: bytes) -> Tag | None:
        """Write an object that does not exist yet; None if it exists."""
        return self._written_if(key, content, "create")

    def replace(self, key: str, content: bytes, tag: Tag) -> Tag | None:
        """Write an object whose version is still `tag`; None if it is another one."""
        known = {name: value for name, value in tag._asdict().items() if value is not None}
        return self._written_if(key, content, known)

    def write(self, key: str, content: bytes | Path) -> None:
        """Write an object, whatever was there; it is there whole, or as it was before."""
        import obstore

        with self._told(key):
            try:
                _called(
                    obstore.put,
                    self._store,
                    key,
                    content,
                    chunk_size=_PART,
                    max_concurrency=AT_ONCE,
                )
            except FileNotFoundError as error:
                self._check_bucket(error)
                raise

    def write_all(self, contents: Mapping[str, bytes | Path]) -> None:
        """Write many objects, several at once."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="objects") as threads:
            list(threads.map(self.write, contents, contents.values()))

    def copy(self, keys: Mapping[str, Path]) -> None:
        """Copy objects into files of new folders, several at once."""

        def one(key: str, path: Path) -> None:
            import obstore

            with self._told(key):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    for part in _called(obstore.get, self._store, key).stream(min_chunk_size=_PART):
                        file.write(part)

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="objects") as threads:
            list(threads.map(one, keys, keys.values()))

    def sizes(self, prefix: str) -> dict[str, int]:
        """The size in bytes of every object below a prefix, by its key."""
        import obstore

        with self._told(prefix):
            return _called(
                lambda: {
                    one["path"]: one["size"]
                    for page in obstore.list(self._store, prefix=prefix)
                    for one in page
                }
            )

    def names(self, prefix: str) -> tuple[list[str], list[str]]:
        """The names of the folders, and of the objects, directly below a prefix."""
        import obstore

        with self._told(prefix):
            found = _called(obstore.list_with_delimiter, self._store, prefix=prefix or None)
        folders = [path.rpartition("/")[2] for path in found["common_prefixes"]]
        return sorted(folders), sorted(o["path"].rpartition("/")[2] for o in found["objects"])

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error."""
        import obstore

        known = sorted(keys)
        if known:
            with self._told(known[0]), contextlib.suppress(FileNotFoundError):
                _called(obstore.delete, self._store, known)

    def _written_if(self, key: str, content: bytes, mode: Any) -> Tag | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._told(key):
            try:
                return _tag(_called(obstore.put, self._store, key, content, mode=mode))
            except (AlreadyExistsError, PreconditionError):
                return None
            except FileNotFoundError as error:  # also the answer if what is to be replaced is gone
                self._check_bucket(error)
                return None

    def _check_bucket(self, error: Exception) -> None:
        if _NO_BUCKET.search(str(error)):
            rule = "The bucket of `run` must exist"
            raise ValueError(f"{rule}; got bucket = {self.url!r}.") from error

    @contextlib.contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """In this context, an error of the library says what it means for this package."""
        from obstore import exceptions

        where = f"{self.url}/{key}"
        try:
            yield
        except exceptions.BaseError as error:
            denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
            said, line = str(error), _line(error)
            if _REGION.search(said):
                rule = f"AWS_REGION must be that of {self.url}"
                raise ValueError(f"{rule}; got {line!r}.") from error
            if _NOT_MADE.search(said):
                rule = f"The store {self.url} must keep conditions of writes"
                raise ValueError(f"{rule}; got {line!r}.") from error
            if isinstance(error, denied) or _NO_LOGIN.search(said) or _OLD_LOGIN.search(said):
                rule = "The environment must give credentials that allow to read, write, list and"
                raise ValueError(f"{rule} delete {where}; got {line!r}.") from error
            raise TemporaryError(f"{where}: the store does not answer: {_line(error)}") from error


def open_bucket(scheme: str, bucket: str) -> Objects:
    """The objects of `gs://BUCKET` or `s3://BUCKET`, with the settings of the environment.

    Raises:
        ValueError: if `obstore` is not installed, or cannot use the settings.
    """
    settings = ("AWS_", "GOOGLE_")
    environment = {name: os.environ[name] for name in os.environ if name.startswith(settings)}
    return _opened(scheme, bucket, tuple(sorted(environment.items())))


@cache
def _opened(scheme: str, bucket: str, environment: tuple[tuple[str, str], ...]) -> Objects:
    try:
        import obstore.store  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "A run on an object store needs the package `obstore`, which is not installed: "
            "`pip install 'dfm_jax[stores]'`."
        ) from error
    known = dict(environment)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "GOOGLE_BASE_URL"):
        if not re.match("https?://.|$", address := known.get(name, "")):
            raise ValueError(f"{name} must begin with http:// or https://; got {name} = {address}.")
    try:
        return Objects(f"{scheme}://{bucket}", _store(scheme, bucket, known))
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # of obstore, or of boto3, which have many kinds
        rule = f"The environment must describe the store {scheme}://{bucket}"
        raise ValueError(f"{rule}; got {_line(error)!r}.") from error


def _store(scheme: str, bucket: str, known: Mapping[str, str]) -> Any:
    from obstore.store import GCSStore, S3Store

    retries: Any = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}
    client: Any = {"timeout": "120s", "connect_timeout": "10s"}
    if scheme == "gs":
        client["allow_http"] = known.get("GOOGLE_BASE_URL", "").startswith("http://")
        return GCSStore(bucket, client_options=client, retry_config=retries)
    endpoint = known.get("AWS_ENDPOINT_URL_S3", known.get("AWS_ENDPOINT_URL", ""))
    client["allow_http"] = endpoint.startswith("http://")
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    return S3Store(
        bucket,
        client_options=client,
        retry_config=retries,
        credential_provider=_boto3_credentials(known),
        **options,
    )


def _boto3_credentials(environment: Mapping[str, str]) -> Any:
    """The credentials of a profile, which obstore does not read itself; None if it need not."""
    alone = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
    containers = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    if any(name in environment for name in alone + containers):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    try:
        return Boto3CredentialProvider()
    except ValueError:  # boto3 finds none: the account of the machine is left
        return None


def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function of the library returns; a signal is noticed before it returns.

    The library lets no signal through, and may wait for minutes for a store that does not answer.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(*args, **kwargs)
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="objects", daemon=True).start()
    return future.result()


def _tag(found: Any) -> Tag:
    return Tag(found["e_tag"], found["version"])


def _line(error: Exception) -> str:
    """What an error says, without the structure that the library prints after it."""
    return " ".join(str(error).partition("\n\nDebug source:")[0].split())
