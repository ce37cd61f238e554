"""A comparison of a run in words and tables, made of its JSON values alone.

What it reads is what `training.run_comparison.compare_run` returns and `comparison.json` holds.
"""

from collections.abc import Mapping
from typing import Any

TERMS = {
    "own": "the experts' own loss, each on its part",
    "cost": "not knowing the part",
    "gate": "another gate than Bayes",
    "truncation": "keeping the best experts only",
}
Found = Mapping[str, Any]


def named(row: Found) -> str:
    """A gate variant: `Bayes` keeps all experts, `Bayes, top-1` the best one."""
    return row["gate"] if row["top"] == "full" else f"{row['gate']}, {row['top']}"


def signed(value: float | None) -> str:
    """A difference in nats, with a sign that is as wide as a plus."""
    return "–" if value is None else f"{value:+.4f}".replace("-", "−")


def interval_text(low: float | None, high: float | None) -> str:
    """The ends of an interval; one document has none."""
    return "no interval" if low is None else f"{signed(low)} to {signed(high)}"


def level_text(found: Found) -> str:
    """The level of the intervals."""
    return f"{100 * found['options']['level']:g} %"


def ensemble_of(found: Found) -> Found:
    """The row of the ensemble: the Bayes gate over all experts."""
    return variant(found, "Bayes", "full")


def variant(found: Found, gate: str, top: str) -> Found:
    """The row of a gate variant.

    Raises:
        ValueError: if there is none.
    """
    for row in found["gates"]:
        if (row["gate"], row["top"]) == (gate, top):
            return row
    raise ValueError(f"`gate` must be that of a row; got gate = {gate!r} with top = {top!r}.")


def heading(found: Found) -> str:
    """What is compared, and on how much text."""
    size = f", {found['size']:,} bytes" if found["unit"] == "byte" else ""
    experts = counted(len(found["experts"]), "expert")
    return (
        f"{found['run']}: {experts} and a dense model on "
        f"{counted(found['documents'], 'held-out document')}, {found['tokens']:,} tokens{size}"
    )


def counted(number: int, word: str) -> str:
    """A number and a word, in the plural unless it is one."""
    return f"{number:,} {word}" + "s" * (number != 1)


def residual_text(found: Found) -> str:
    """How exactly the account sums to the differences."""
    return f"the terms sum to it within {found['residuals']['sum']:.0e} nats per document"


def verdict_sentences(found: Found) -> list[str]:
    """The verdict on the ensemble and the dense model, and what it speaks of."""
    verdict = ensemble_of(found)["verdict"]
    unit = f"nats per {found['unit']}"
    reach = f"{level_text(found)} interval {interval_text(verdict['low'], verdict['high'])}"
    where = f"on {counted(found['documents'], 'held-out document')}"
    size, margin = abs(verdict["mean"]), f"{verdict['margin']:g}"
    if verdict["verdict"] == "equivalent":
        said = (
            f"The ensemble and the dense model are equivalent within {margin} {unit} {where}: the "
            f"difference is {signed(verdict['mean'])}, {reach}."
        )
    elif verdict["verdict"] == "undecided":
        said = (
            f"It is undecided whether the ensemble or the dense model is better {where}: the "
            f"difference is {signed(verdict['mean'])} {unit}, {reach}, and {verdict['reason']}."
        )
    else:
        more = "less" if verdict["verdict"] == "better" else "more"
        said = (
            f"The ensemble is {verdict['verdict']} than the dense model: it needs {size:.4f} "
            f"{unit} {more} {where}, {reach}."
        )
    speaks = "That is for other documents and these trained models; another seed may differ."
    warning = found["training"]["warning"]
    return [said, speaks, *([warning] if warning else [])]


def account_sentence(found: Found, row: Found) -> str:
    """The account of a gate variant as a sum."""
    terms = [f"{signed(row['terms'][name])} ({words})" for name, words in TERMS.items()]
    return f"{signed(row['minus']['dense'][0])} = {' '.join(terms)}"


# ── tables: a heading and rows of text ──────────────────────────────────────────────────────────


def gate_table(found: Found) -> list[list[str]]:
    """Every gate variant, from the lowest loss up; the dense model stands among them."""
    heading = [
        "gate",
        f"nats/{found['unit']}",
        "− dense",
        f"{level_text(found)} interval",
        "experts",
        "verdict",
    ]
    dense = ["dense model", f"{found['dense']:.4f}", "", "", "", ""]
    rows = [
        [
            named(row),
            f"{row['nll']:.4f}",
            signed(row["verdict"]["mean"]),
            interval_text(row["verdict"]["low"], row["verdict"]["high"]),
            f"{row['evaluations']:.1f}",
            row["verdict"]["verdict"],
        ]
        for row in distinct(found)
    ]
    return [heading, *sorted([dense, *rows], key=lambda row: float(row[1]))]


def distinct(found: Found) -> list[Found]:
    """The gate variants, without top-2 of at most two experts, which is all of them."""
    few = len(found["experts"]) <= 2
    return [row for row in found["gates"] if not (few and row["top"] == "top-2")]


def account_table(found: Found) -> list[list[str]]:
    """The terms of each gate variant that sum to its difference to the dense model."""
    heading = ["gate", "own", "+ cost", "+ gate", "+ truncation", "= − dense"]
    rows = [
        [
            named(row),
            *(signed(row["terms"][name]) for name in TERMS),
            signed(row["minus"]["dense"][0]),
        ]
        for row in distinct(found)
    ]
    return [heading, *rows]


def group_table(found: Found, kind: str) -> list[list[str]]:
    """The ensemble and the oracle, which knows the part, on each group of documents."""
    ensemble, oracle = ensemble_of(found), variant(found, "oracle", "top-1")
    heading = [kind, f"nats/{found['unit']}", "− dense", "interval", "own expert − dense"]
    rows = []
    for name, group in ensemble["groups"][kind].items():
        mean, low, high = group["minus"]
        own = oracle["groups"][kind][name]["minus"][0]
        rows.append(
            [name, f"{group['nll']:.4f}", signed(mean), interval_text(low, high), signed(own)]
        )
    return [heading, *rows]


def training_table(found: Found) -> list[list[str]]:
    """Updates, tokens and FLOPs of each member, and of the experts together."""
    training = found["training"]
    rows = [[one["name"], f"{one['step']:,}", *_costs(one)] for one in training["members"]]
    rows.append(["all experts", "", *_costs(training["experts"])])
    ratios = [
        "not known" if ratio is None else f"{ratio:.3f}" for ratio in training["ratios"].values()
    ]
    return [["member", "updates", "tokens", "FLOPs"], *rows, ["experts / dense", "", *ratios]]


def _costs(one: Found) -> list[str]:
    flops = "not known" if one["flops"] is None else f"{one['flops']:.4g}"
    return ["not known" if one["tokens"] is None else f"{one['tokens']:,}", flops]


def kinds_of(found: Found) -> list[str]:
    """The kinds of groups: always `expert`, and what the data say."""
    return list(ensemble_of(found)["groups"])
