"""The number of chips at which experts overtake the dense model, from the rows of `scaling`."""

from collections.abc import Mapping, Sequence
from typing import Any

AHEAD = 1.1  # experts have overtaken: the dense model takes 1.1 times as long
WAYS = ("in_turn", "at_once", "apart_in_turn", "apart_at_once")


def gains(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The dense model's time over the experts', if both fit, without and with full overlap.

    For the ratios named "apart", the dense model's chips lie in as many sites as there are experts,
    so its gradient is also summed between sites; each expert has a site of its own.
    """
    rows, found = [row for row in rows if row["quickest"]], []
    dense = {(r["kind"], r["size"], r["chips"]): r for r in rows if r["variant"] == "dense"}
    for row in rows:
        there = dense.get((row["kind"], row["size"], row["chips"]))
        if row["variant"] == "dense" or there is None:
            continue
        kept = {name: row[name] for name in ("kind", "size", "chips", "variant")}
        in_turn, at_once = there["in_turn_s"], there["at_once_s"]
        times = (in_turn, at_once, in_turn + there["sites_s"], max(at_once, there["sites_s"]))
        own = (row["in_turn_s"], row["at_once_s"]) * 2
        ratios = (time / mine for time, mine in zip(times, own, strict=True))
        found.append(kept | dict(zip(WAYS, ratios, strict=True)))
    return found


def crossovers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fewest chips that hold dense model and experts, and from which on experts are faster.

    None means that they are faster at no number of chips that was computed.
    """
    found, ratios = [], gains(rows)
    for key in dict.fromkeys((row["kind"], row["size"], row["variant"]) for row in rows):
        kind, size, variant = key
        if variant == "dense":
            continue
        fits = {
            who: min(
                (r["chips"] for r in rows if _key(r) == (kind, size, who) and r["quickest"]),
                default=None,
            )
            for who in ("dense", variant)
        }
        entry = {"kind": kind, "size": size, "variant": variant}
        entry |= {"dense_fits_from": fits["dense"], "experts_fit_from": fits[variant]}
        own = [gain for gain in ratios if _key(gain) == key]
        for way in WAYS:
            behind = max((gain["chips"] for gain in own if gain[way] < AHEAD), default=0)
            ahead = (gain["chips"] for gain in own if gain["chips"] > behind)
            entry[f"{way}_ahead_from"] = min(ahead, default=None)
        found.append(entry)
    return found


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["kind"], row["size"], row["variant"]
