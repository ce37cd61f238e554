"""The formulas of `costs`, compared with compiled programs on 8 virtual devices.

XLA's text names every collective and the shape of its result; a ring sends, on each device,

    all-reduce  2 (n − 1)/n · result      all-gather, all-to-all  (n − 1)/n · result
    reduce-scatter  (n − 1) · result      permute, send  result

The body of a loop is in the text once; these programs have no loop that communicates. Bytes that a
program sends beyond the formula are named, and counted by a formula of their own.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax

from dfm_jax.models import TransformerConfig, num_parameters
from dfm_jax.parallel import Collective, collectives, count_by_kind
from experiments.lib.programs import TINY, Program, programs
from experiments.systems.scaling.costs import Rules, update_traffic

# One layer: all layers are alike, and compile as long each. An untied head: as in Llama.
MODEL = replace(TINY, num_layers=1, tied=False)
RULES = Rules(length=32, efficiency=1.0, usable=1.0, gradient_bytes=4, gather_bytes=4)
NUMBER = 4  # bytes


def sent(one: Collective, num_devices: int) -> float:
    """The bytes that each device sends, on a ring."""
    n = len(one.groups[0]) if one.groups else num_devices
    factor = {
        "all-reduce": 2 * (n - 1) / n,
        "all-gather": (n - 1) / n,
        "all-to-all": (n - 1) / n,
        "reduce-scatter": n - 1,
    }
    return factor.get(one.kind, 1.0) * one.num_bytes


def compared(devices: Sequence[Any]) -> list[dict[str, Any]]:
    """One row per program: bytes by formula, bytes of named extras, bytes that are sent."""
    count, found = len(devices), programs(devices, model=MODEL)
    all_but = (count - 1) / count
    size, leaves = num_parameters(MODEL), _num_leaves(MODEL)

    def formula(num_chips: int, shards: int) -> float:
        return update_traffic(MODEL, num_chips, shards, 1, num_chips, RULES).fast

    nats_and_count = 2 * all_but * 2 * NUMBER
    sharded_extras = {
        # The backward pass of a layer uses what its forward pass gathered: nothing is recomputed
        # here. The gradient is all-reduced, and its part cut out: XLA on a CPU knows no better.
        "one gather less": -all_but * 4 * size,
        "all-reduce for reduce-scatter": all_but * 4 * size,
        "three norms of each leaf, nats, count": 2 * all_but * NUMBER * (3 * leaves + 2),
    }
    batch = 2 * 2 * 32  # tokens of a pair of devices
    table = MODEL.states * MODEL.width
    pair_extras = {
        "the table's gradient is not summed": -NUMBER * table,
        "what it is made of is gathered": NUMBER * batch * (MODEL.width + 1) / 2,
        "nats, count": 2 * NUMBER,
    }
    cases = (
        ("experts, one a device", "expert step, shard_map", 0.0, {}),
        ("experts, one a device, pmap", "expert step, pmap", 0.0, {}),
        ("experts, two devices each", "expert × data step", formula(2, 1), pair_extras),
        (
            "dense, data-parallel",
            "dense step, data-parallel",
            formula(count, 1),
            {"nats, count": nats_and_count},
        ),
        ("dense, sharded", "dense step, sharded", formula(count, count), sharded_extras),
    )
    rows = [_row(name, found[key], count, by, extras) for name, key, by, extras in cases]
    odd = replace(MODEL, num_states=MODEL.num_tokens + 1)
    trap = programs(devices, model=odd)["dense step, sharded"]
    by = update_traffic(odd, count, count, 1, count, RULES).fast
    name = "dense, sharded, a table that the devices do not divide"
    rows.append(_row(name, trap, count, by, {}, claimed=False))
    rows[4]["if_data_parallel"] = abs(rows[4]["sent"] - formula(count, 1) - nats_and_count)
    return rows


def _row(
    name: str,
    program: Program,
    num_devices: int,
    formula: float,
    extras: dict[str, float],
    claimed: bool = True,
) -> dict[str, Any]:
    compiled = jax.jit(program.fn).lower(*program.shapes).compile()
    found = collectives(compiled)
    total = sum(sent(one, num_devices) for one in found)
    pairs = [set(pair) for pair in ((0, 1), (2, 3), (4, 5), (6, 7))]
    alone = name.startswith("experts")
    return {
        "program": name,
        "collectives": count_by_kind(found),
        "formula": formula,
        "extras": extras,
        "sent": total,
        "unexplained": abs(total - formula - sum(extras.values())),
        "to_others": sum(one.num_bytes for one in found if not _inside(one, pairs))
        if alone
        else None,
        "claimed": claimed,
    }


def _inside(one: Collective, rows: list[set[int]]) -> bool:
    return bool(one.groups) and all(any(set(g) <= row for row in rows) for g in one.groups)


def _num_leaves(model: TransformerConfig) -> int:
    """Nine arrays a layer, the table, the last norm, and a head that is not tied."""
    return 9 * model.num_layers + 2 + (not model.tied)
