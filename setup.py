"""The description for a package index; all else stands in pyproject.toml.

A package index does not have the files of the checkout: a link to one of them would lead nowhere,
and a picture would not be shown.
"""

import re
from pathlib import Path

from setuptools import setup

_PICTURE = re.compile(r"^!\[[^\]]*\]\(.*\)\n\n", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://)([^)]+)\)")


def without_files(markdown: str) -> str:
    """The text without pictures, in which a link to a file is its words and the path as code."""

    def named(link: re.Match[str]) -> str:
        words, path = link.groups()
        return f"`{path}`" if words == path else f"{words} (`{path}`)"

    # Every second part is a block of code.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [_LINK.sub(named, _PICTURE.sub("", part)) for part in parts[::2]]
    return "".join(parts) + "\nPaths such as `docs/map.md` are those of the source distribution.\n"


setup(
    long_description=without_files(Path(__file__).with_name("README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
)
