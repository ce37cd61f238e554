"""Pictures of a comparison as SVG, made of its JSON values: no library, no network.

A picture is 360 units wide, so that its letters can be read on a phone.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from dfm_jax.comparison.report import TERMS, Found, distinct, named, signed, variant

# Okabe and Ito's palette: told apart by every kind of color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7F00", "#7F7F7F")
_WIDTH, _ROW, _LETTER = 360, 17, 6.2  # units
_BETTER, _WORSE = COLORS[0], COLORS[1]
_ACCOUNTS = (("Bayes", "full"), ("Bayes", "top-1"), ("fixed share", "full"))


def color_of(expert: int) -> str:
    """The color of an expert; beyond eight they repeat."""
    return COLORS[expert % len(COLORS)]


class Scale(NamedTuple):
    """A linear map of values to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values between two ends, at most `most` and one more."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def short(value: float) -> str:
    """A number in as few characters as a tick can have."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:.4g}".replace("-", "−")


# ── losses along training ───────────────────────────────────────────────────────────────────────


def losses_picture(found: Found) -> str:
    """The validation losses of all members along their training, or else their losses.

    Empty if no member has logged two of them.
    """
    name = next((n for n in ("validation", "loss") if _has_lines(found, n)), None)
    if name is None:
        return ""
    lines = [
        [(step * one["tokens_per_step"], value) for step, value in one[name]]
        for one in found["curves"]
    ]
    points = [point for line in lines for point in line]
    height, left, bottom = 220, 44, 190
    across = Scale(0, max(x for x, _ in points), left, _WIDTH - 12)
    low, high = min(y for _, y in points), max(y for _, y in points)
    up = Scale(low, high, bottom - 6, 12)
    body = []
    for tick in ticks(low, high):
        body += [_line(left, up(tick), _WIDTH - 12, up(tick), "grid")]
        body += [_text(left - 4, up(tick) + 4, short(tick), "end")]
    for tick in ticks(0, across.high, 4):
        body.append(_text(across(tick), bottom + 14, short(tick), "middle"))
    words = "validation loss" if name == "validation" else "training loss"
    body.append(_text(left, height - 2, f"tokens read; {words}, nats per token", "start"))
    for number, line in enumerate(lines):
        if not line:
            continue
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        color = "currentColor" if number == 0 else color_of(number - 1)
        width = 2 if number == 0 else 1.5
        body.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>'
        )
    return _svg(height, body, f"The {words} of every member along its training")


def _has_lines(found: Found, name: str) -> bool:
    return any(len(one[name]) > 1 for one in found["curves"])


# ── gates ───────────────────────────────────────────────────────────────────────────────────────


def gates_picture(found: Found) -> str:
    """What each gate loses against the dense model, with its interval and the margin.

    The scale is asinh(x / margin): linear inside the margin, logarithmic far from it.
    """
    margin, rows = found["options"]["margin"], distinct(found)
    left = 12 + max(len(named(row)) for row in rows) * _LETTER
    height = _ROW * (len(rows) + 2) + 8

    def place(value: float) -> float:
        return math.asinh(value / margin)

    values = [x for row in rows for x in row["minus"]["dense"] if x is not None]
    ends = min(*values, -margin), max(*values, margin)
    across = Scale(place(ends[0]), place(ends[1]), left + 6, _WIDTH - 14)
    foot = _ROW * len(rows) + 10
    edges = across(place(-margin)), across(place(margin))
    body = [
        _rect(edges[0], 4, edges[1] - edges[0], foot - 4, 'class="band"'),
        _line(across(0), 4, across(0), foot, "axis"),
    ]
    body += [
        _text(across(place(tick)), foot + 13, short(tick), "middle")
        for tick in _ticks_around(margin, *ends)
    ]
    for number, row in enumerate(rows):
        mean, low, high = row["minus"]["dense"]
        y = _ROW * number + 15
        color = {"better": _BETTER, "worse": _WORSE}.get(row["verdict"]["verdict"], "currentColor")
        body.append(_text(left, y + 4, named(row), "end"))
        if low is not None:
            ends_of_row = across(place(low)), across(place(high))
            body.append(_line(ends_of_row[0], y, ends_of_row[1], y, "reach", color))
        body.append(f'<circle cx="{across(place(mean)):.1f}" cy="{y}" r="3.5" fill="{color}"/>')
    words = f"gate − dense model, nats per {found['unit']}; gray: the margin"
    body.append(_text(_WIDTH - 6, height - 2, words, "end"))
    return _svg(height, body, "Each gate beside the dense model, with intervals over documents")


def _ticks_around(margin: float, low: float, high: float) -> list[float]:
    """0, and on each side powers of ten times the margin; the margin itself if there is no more."""

    def until(end: float) -> list[float]:
        sizes = [margin]
        while sizes[-1] * 10 <= end:
            sizes.append(sizes[-1] * 10)
        return sizes[1:] or sizes

    return [*(-size for size in reversed(until(-low))), 0.0, *until(high)]


# ── the account ─────────────────────────────────────────────────────────────────────────────────


def account_picture(found: Found) -> str:
    """The account as waterfalls from the dense model to some gates: each term begins at a sum."""
    rows = [variant(found, gate, top) for gate, top in _ACCOUNTS]
    sums = [0.0]
    for row in rows:
        total = 0.0
        for name in TERMS:
            total += row["terms"][name]
            sums.append(total)
    left, right = 104, _WIDTH - 56
    across = Scale(min(sums), max(sums), left, right)
    body, y = [], 4.0
    for row in rows:
        body.append(_text(4, y + 11, f"dense model to {named(row)}", "start", "name"))
        top, total = y + 16, 0.0
        y = top
        for name, value in [*((name, row["terms"][name]) for name in TERMS), ("sum", None)]:
            start, end = (0.0, total) if value is None else (total, total + value)
            shown = total if value is None else value
            color = "currentColor" if value is None else _WORSE if value > 0 else _BETTER
            x, width = min(across(start), across(end)), abs(across(end) - across(start))
            body += [
                _text(left - 8, y + 12, name, "end"),
                _rect(x, y + 3, width, 11, f'fill="{color}"'),
                _text(_WIDTH - 4, y + 12, signed(shown), "end"),
            ]
            total, y = end, y + _ROW
        body.append(_line(across(0), top, across(0), y, "axis"))
        y += 8
    words = f"nats per {found['unit']}"
    body.append(_text(_WIDTH - 4, y + 8, words, "end"))
    return _svg(y + 14, body, "The account of the difference to the dense model")


# ── a gate along a text ─────────────────────────────────────────────────────────────────────────


def gate_picture(weights: Sequence[Sequence[float]]) -> str:
    """The weights of the experts before each token of a text, one on top of the other."""
    height, foot = 96, 80
    across = Scale(0, max(len(weights) - 1, 1), 4, _WIDTH - 4)
    up = Scale(0, 1, foot, 4)
    below = [0.0] * len(weights)
    body = []
    for expert in range(len(weights[0])):
        above = [b + row[expert] for b, row in zip(below, weights, strict=True)]
        there = [f"{across(i):.1f},{up(min(v, 1.0)):.1f}" for i, v in enumerate(above)]
        back = [f"{across(i):.1f},{up(min(v, 1.0)):.1f}" for i, v in enumerate(below)]
        points = " ".join([*there, *reversed(back)])
        body.append(f'<polygon points="{points}" fill="{color_of(expert)}"/>')
        below = above
    body.append(_text(4, height - 3, "first token", "start"))
    body.append(_text(_WIDTH - 4, height - 3, f"token {len(weights):,}", "end"))
    return _svg(height, body, "The weight of each expert before each token")


# ── elements ────────────────────────────────────────────────────────────────────────────────────


def _svg(height: float, body: Sequence[str], label: str) -> str:
    view = f"0 0 {_WIDTH} {height:.0f}"
    inside = "\n".join(body)
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(label)}">\n{inside}\n</svg>'


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    named_kind = f' class="{kind}"' if kind else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named_kind}>{escape(words)}</text>'
    )


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {kind}/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, color: str | None = None) -> str:
    places: dict[str, Any] = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ends = " ".join(f'{name}="{value:.1f}"' for name, value in places.items())
    stroke = "" if color is None else f' style="stroke:{color}"'
    return f'<line {ends} class="{kind}"{stroke}/>'
