"""Mappings, lists and scalars as YAML, in the block style that people write; no reader is here."""

import json
import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}  # not strings, to some


def yaml_text(value: Any, indent: int = 0) -> str:
    """The lines of a mapping or a list, each ended; numbers, strings and booleans inside."""
    pad = " " * indent
    if isinstance(value, dict):
        entries = [f"{_scalar(name)}:{_entry(entry, indent)}" for name, entry in value.items()]
    else:
        entries = [f"-{_item(entry, indent)}" for entry in value]
    return "".join(pad + entry for entry in entries)


def _item(value: Any, indent: int) -> str:
    if _is_block(value):  # its first line stands behind the dash
        return " " + yaml_text(value, indent + 2)[indent + 2 :]
    return _entry(value, indent)


def _is_block(value: Any) -> bool:
    return isinstance(value, dict | list) and bool(value)


def _entry(value: Any, indent: int) -> str:
    if _is_block(value):
        return "\n" + yaml_text(value, indent + 2)
    if isinstance(value, str) and _is_literal(value):
        pad = " " * (indent + 2)
        return " |\n" + "".join(f"{pad}{line}\n" for line in value[:-1].split("\n"))
    return f" {_scalar(value)}\n"


def _is_literal(text: str) -> bool:
    """A literal block says it as it is: ended by one line break, its first line not indented."""
    lines = text.split("\n")
    whole = len(lines) > 1 and lines[-1] == "" and lines[0] != "" and lines[-2] != ""
    return whole and not text.startswith(" ") and all(line.isprintable() for line in lines)


def _scalar(value: Any) -> str:
    """Whatever JSON writes is YAML; a plain word need not be quoted."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    quoted = json.dumps(value, ensure_ascii=False)  # which leaves DEL, U+0085, U+2028 as they are
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
