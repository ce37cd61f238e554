"""The pixels that a processor makes of picture files, kept on the disk in 8 bits by their content.

The key of a picture is the SHA-256 of the file and of the settings of the processor. So a picture
under two names is kept once, and another processor keeps others beside them.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxtyping import UInt8
from numpy import frombuffer, ndarray, uint8

from dfm_jax.checks import require
from dfm_jax.data.arrays import keep_bytes, kept_bytes
from dfm_jax.data.pictures import READING, decoded_picture
from dfm_jax.data.processors import PictureProcessor
from dfm_jax.types import typed


@dataclass(frozen=True)
class Picture:
    """A picture file, and the key of its pixels."""

    path: Path
    key: str
    count: int  # T, the squares that the processor makes of it


@dataclass(frozen=True)
class PixelStore:
    """A folder of pixels. Several processes may use it at once."""

    folder: Path
    processor: PictureProcessor

    def picture(self, path: Path) -> Picture:
        """Read a file, and keep its pixels if they are not kept yet.

        Raises:
            ValueError: if the file cannot be read as a picture; the message names it.
            MissingDataError: if pillow is not installed.
        """
        content = path.read_bytes()
        key = self._key(content)
        pixels = self._kept(key)
        if pixels is None:
            try:
                pixels = self.processor.pixels(decoded_picture(content))
            except ValueError as error:
                raise ValueError(
                    f"{path} must be a picture that can be read; got another file: {error}."
                ) from error
            keep_bytes(self.folder, key, pixels.tobytes())
        return Picture(path, key, len(pixels))

    @typed
    def pixels(self, picture: Picture) -> UInt8[ndarray, "T size size 3"]:
        """The squares of a picture; if what is kept is damaged, they are made again and kept.

        Raises:
            ValueError: if they must be made again and the file is not the same any more.
        """
        pixels = self._kept(picture.key)
        if pixels is not None:
            return pixels
        again = self.picture(picture.path)
        rule = f"The content of {picture.path} must not change while it is trained on"
        require(again.key == picture.key, rule, again.key, name="its key")
        pixels = self._kept(picture.key)
        assert pixels is not None
        return pixels

    def _kept(self, key: str) -> ndarray | None:
        """Not as an .npy file: Python 3.11 may fail to parse its header in several threads."""
        content = kept_bytes(self.folder, key)
        if content is None:
            return None
        return frombuffer(content, uint8).reshape(-1, self.processor.size, self.processor.size, 3)

    def _key(self, content: bytes) -> str:
        settings = json.dumps([READING, asdict(self.processor)], sort_keys=True)
        whole = hashlib.sha256(hashlib.sha256(settings.encode()).digest())
        whole.update(hashlib.sha256(content).digest())
        return whole.hexdigest()
