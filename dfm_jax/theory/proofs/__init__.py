"""The proofs that Coq has checked, and what ties them to the code.

    from dfm_jax.theory.proofs import proved

    for theorem in proved()["D4"]:
        print(theorem.name, theorem.file, theorem.statement)

The sources `*.v` stand beside this file, one for each theme; a theorem has the label of the ledger,
with a suffix for variants. `index.json` lists what Coq says of each, and `definitions.json` has
their definitions; `make prove` checks all sources again and writes both anew, where Coq is
installed. `python -m dfm_jax.theory.proofs.tie` computes the definitions beside the functions of
the package.
"""

from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dfm_jax.json_text import read_json

FOLDER = Path(__file__).parent

# What a theorem needs that the words of the ledger do not say; all others are general.
HYPOTHESES: dict[str, str] = {
    "B1": "ŵ_k p̂_k(x) > 0",
    "B2": "ŵ_k q̂_k > 0 wherever w_k q_k > 0",
    "B3": "ŵ_k q̂_k > 0 wherever w_k q_k > 0",
    "B4": "ρ̂_k q̂_k > 0 wherever r_k q_k > 0",
    "B6": "M > 0; `B6_divergence` is for KL",
    "B10": "Σ_k ρ_k q_k > 0 wherever the true next-token law is",
    "B11": "ŵ_k p̂_k(x) > 0",
    "D9": "each expert has one real parameter",
    "D11": "ρ̂_k > 0 wherever r_k > 0",
    "D12": "p̂ and ρ̂ are positive wherever the true ones are",
    "D14": "p̂ and ρ̂ are positive wherever the true ones are, and the weight is 1",
    "L1": "p̂ > 0 wherever p_{1|t} > 0",
    "L5": "p̂^i(x_1^i | z) > 0 wherever it is read; `L5_equality` also asks that p̂ is free of time",
    "P6": "β < ∞; `P6_end` bounds the other tokens' mass by exp(−β d)",
    "S7": "the order is left to right",
    "V7": "u and ǔ generate the path, as V5 and V6 do",
}
# What is proved of a statement that is not proved as a whole.
PARTLY = {
    "B8": "the inequality of the rates, `Objectives.B8_rates`",
    "L2": "the identity for a token, `Objectives.L2_token`",
    "L3": "for any polynomial κ the integral is the mean over all orders, "
    "`Objectives.L3_random_orders`; it is at least −log of their mean probability",
}
# With real analysis come these, and no others: see mathcomp-classical.
CLASSICAL = (
    "constructive_indefinite_description",
    "functional_extensionality_dep",
    "propositional_extensionality",
)


class Theorem(NamedTuple):
    """A theorem that Coq has checked: the label comes from the ledger."""

    name: str
    label: str
    file: str
    statement: str
    assumptions: tuple[str, ...]


@cache
def proved() -> dict[str, tuple[Theorem, ...]]:
    """The theorems of each label, in the order of the files."""
    found = defaultdict(list)
    for row in read_json(FOLDER / "index.json")["theorems"]:
        theorem = Theorem(**row | {"assumptions": tuple(row["assumptions"])})
        found[theorem.label].append(theorem)
    return {label: tuple(theorems) for label, theorems in found.items()}


def main_theorem(label: str) -> str:
    """The theorem with the name of a label, as `Experts.D4`; "" if there is none."""
    main = next((each for each in proved().get(label, ()) if each.name == label), None)
    return f"{main.file.removesuffix('.v')}.{main.name}" if main else ""


def proof_of(label: str) -> str:
    """What is proved of a statement: its theorem, and a hypothesis that the words do not have.

    That of B2 is "`Information.B2`, where ŵ_k q̂_k > 0 wherever w_k q_k > 0".
    """
    theorem = main_theorem(label)
    if not theorem:
        return f"in part: {PARTLY[label]}" if label in PARTLY else "checked only"
    hypothesis = f", where {HYPOTHESES[label]}" if label in HYPOTHESES else ""
    return f"`{theorem}`{hypothesis}"
