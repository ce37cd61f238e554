"""The ledger as a page: each statement, its functions, and what breaks it."""

import ast
import inspect
import re
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from dfm_jax.theory.proofs import proof_of
from dfm_jax.theory.statement import SECTIONS, in_order

MATHEMATICS = (
    "schedules",
    "paths",
    "velocities",
    "steps",
    "markov",
    "mixture.posterior",
    "mixture.gates",
    "objectives",
    "samplers",
    "accounting",
)
_NOTATION = (
    "Notation: V data tokens, N positions, K experts, a mask m; x^{≤t} the first t tokens,",
    "positions from 1 as in the papers (from 0 in the code); p the source, q the data, π their",
    "coupling, p_t the path, u_t its velocity, κ_t the schedule; w_k, q_k, p_t^k, u_t^k of part k,",
    "r_k(z, t) the posterior over parts; δ_y a point mass; hats mark what is learned; all in nats.",
    "",
    "Sources: DAG [2601.03184](https://arxiv.org/abs/2601.03184), the paper implemented;",
    "DFM [2407.15595](https://arxiv.org/abs/2407.15595),",
    "FMG [2412.06264](https://arxiv.org/abs/2412.06264),",
    "KO [2412.03487](https://arxiv.org/abs/2412.03487),",
    "DFM-C [2402.04997](https://arxiv.org/abs/2402.04997),",
    "DDM [2501.05450](https://arxiv.org/abs/2501.05450),",
    "MD4 [2406.04329](https://arxiv.org/abs/2406.04329) (for masks),",
    "RADD [2406.03736](https://arxiv.org/abs/2406.03736),",
    "OeMDM [2602.02112](https://arxiv.org/abs/2602.02112) (a schedule for each position),",
    "CCL [2511.04647](https://arxiv.org/abs/2511.04647) (for random sets),",
    "EB [2505.24857](https://arxiv.org/abs/2505.24857) (the bound by entropies);",
    "own: derived for this project; own use: a known fact put to a new use; known: used by many,",
    "without a first source.",
)
_CITATION = re.compile(r"\[((?:[A-Z]\d+[ab]?)(?:(?:, |–)[A-Z]\d+[ab]?)*)\]")


def cited_labels(docstring: str) -> set[str]:
    """The labels that a docstring cites, as in `[D4, D13]`; S7a and S7b are parts of S7."""
    labels = set()
    for group in _CITATION.findall(docstring):
        if "–" not in group:  # a range belongs to a module's caption
            labels |= {label.rstrip("ab") for label in group.split(", ")}
    return labels


def citations() -> dict[str, list[str]]:
    """Label → the functions of the mathematics whose docstrings cite it, as `room.function`."""
    found = defaultdict(list)
    for module in MATHEMATICS:
        for source in _files(module):
            for node in ast.parse(source.read_text("utf-8")).body:
                public = isinstance(node, ast.FunctionDef | ast.ClassDef)
                if public and not node.name.startswith("_"):
                    for label in cited_labels(ast.get_docstring(node) or ""):
                        found[label].append(f"{module.split('.')[0]}.{node.name}")
    return dict(found)


def _files(module: str) -> list[Path]:
    """The source of a module, or of all modules in a package."""
    spec = find_spec(f"dfm_jax.{module}")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"The module dfm_jax.{module} has no source.")
    source = Path(spec.origin)
    return sorted(source.parent.glob("*.py")) if spec.submodule_search_locations else [source]


def equations() -> str:
    """EQUATIONS.md: every statement with its functions, its residual and its falsifier."""
    where, section = citations(), ""
    lines = [
        "# The equation ledger",
        "",
        "Written by `python -m dfm_jax equations --out EQUATIONS.md`.",
        "`python -m dfm_jax verify` runs every row.",
        "The falsifier is the same statement with one hypothesis broken: it must fail; where a row",
        "has several claims, one of them.",
        "",
        "A proof is a theorem that Coq has checked for every finite space; its files are in",
        "`dfm_jax/theory/proofs`, and `make prove` checks them again. A hypothesis that the words",
        "do not have stands behind it. What has no proof is verified on random spaces only.",
        "",
        *_NOTATION,
    ]
    for statement in in_order():
        if SECTIONS[statement.label[0]] != section:
            section = SECTIONS[statement.label[0]]
            lines += ["", f"## {section}", ""]
            lines += ["| | statement | kind | proof | source | functions | falsifier | residual |"]
            lines += ["|---|---|---|---|---|---|---|---|"]
        residual = statement.residual
        home = (inspect.getmodule(residual) or residual).__name__.removeprefix("dfm_jax.")
        functions = ", ".join(f"`{name}`" for name in where.get(statement.label, []))
        cells = (
            f"**{statement.label}**",
            statement.words.replace("|", "\\|"),
            statement.kind,
            proof_of(statement.label).replace("|", "\\|"),
            statement.source,
            functions,
            statement.falsifier_words,
            f"`{home}.{residual.__name__}`",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
