"""A pickle walked through before it is loaded: what loading it would cost.

The C reader makes room for whatever length or memo number it is told, and hashing or printing what
it has made follows nesting without end. So the instructions are read first, in Python, which takes
nothing at its word: a length that the file has not is refused, and so are memo numbers beyond the
number of bytes, nesting beyond a bound, and an object that would be larger, written out, than its
pickle several times over.
"""

import io
import pickletools
from typing import NamedTuple

MAX_DEPTH = 32  # containers within one another; a dictionary of tensors takes four
_MOST_TIMES = 100  # that an object written out may be larger than its pickle
_MARKS = ("mark", "stackslice")
_FILLED = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}  # change what is there


class _Size(NamedTuple):
    depth: int
    parts: int  # written out: what is shared counts each time


def check_pickle(file: io.BytesIO) -> None:
    """Refuse a pickle that would swell; the file stands before it again.

    Raises:
        ValueError: saying what is claimed.
    """
    begin = file.tell()
    most = len(file.getbuffer()) - begin
    stack: list[_Size | None] = []  # None is a mark
    memo: dict[int, _Size] = {}
    for op, argument, place in pickletools.genops(file):
        if "PUT" in op.name or op.name == "MEMOIZE":
            number = int(argument or 0) if "PUT" in op.name else len(memo)
            if number > most:
                raise ValueError(f"its pickle numbers an object {number:,}, at byte {place:,}")
            memo[number] = stack[-1] or _Size(0, 1)
        elif "GET" in op.name:
            stack.append(memo[int(argument or 0)])
        elif op.name == "MARK":
            stack.append(None)
        elif op.name == "DUP":
            stack.append(stack[-1])
        else:
            _step(op, stack)
        top = stack[-1] if stack else None
        if top is not None and (top.depth > MAX_DEPTH or top.parts > _MOST_TIMES * most):
            raise ValueError(f"its pickle is nested too deeply, at byte {place:,}")
    file.seek(begin)


def _step(op: pickletools.OpcodeInfo, stack: list[_Size | None]) -> None:
    """Take from the stack what the instruction takes, and put what it makes of it."""
    taken: list[_Size] = []
    if any(kind.name == "stackslice" for kind in op.stack_before):
        while (part := stack.pop()) is not None:
            taken.append(part)
    single = [kind for kind in op.stack_before if kind.name not in _MARKS]
    taken += [part for part in (stack.pop() for _ in single) if part is not None]
    depth = max((part.depth for part in taken), default=-1) + 1
    if op.name in _FILLED and taken:  # the last one is what is filled
        depth = max([taken[-1].depth, *(part.depth + 1 for part in taken[:-1])])
    made = _Size(depth, 1 + sum(part.parts for part in taken))
    stack.extend(made for _ in op.stack_after)
