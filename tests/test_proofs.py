"""The proofs and the code: one list of labels, one text of sources, the same values."""

import json
import re
import shutil
import time
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import mixture, velocities
from dfm_jax.theory import LEDGER
from dfm_jax.theory.proofs import (
    CLASSICAL,
    FOLDER,
    HYPOTHESES,
    PARTLY,
    main_theorem,
    proof_of,
    proved,
)
from dfm_jax.theory.proofs import build as build_module
from dfm_jax.theory.proofs.build import build, digest, sources, theorems
from dfm_jax.theory.proofs.extracted import Definitions, Finite
from dfm_jax.theory.proofs.logs import Log
from dfm_jax.theory.proofs.spaces import SIDES, TIES, TOLERANCE, Space
from dfm_jax.theory.proofs.tie import ties
from dfm_jax.theory.runs import Run


def index():
    return json.loads((FOLDER / "index.json").read_text("utf-8"))


def test_the_index_is_of_these_sources():
    assert index()["sources"] == {f"{name}.v": digest(text) for name, text in sources().items()}
    assert {path.name for path in FOLDER.glob("*.v")} == set(index()["sources"])
    listed = [(row["name"], row["label"]) for row in index()["theorems"]]
    assert listed == [pair for text in sources().values() for pair in theorems(text)]


def test_every_proved_label_is_in_the_ledger():
    assert set(proved()) <= set(LEDGER)
    assert set(HYPOTHESES) - set(proved()) == set()


def test_nothing_is_assumed_but_by_real_analysis():
    for row in index()["theorems"]:
        allowed = set(CLASSICAL) if "analysis" in sources()[row["file"][:-2]] else set()
        assert set(row["assumptions"]) <= allowed, row["name"]


@pytest.mark.parametrize(
    "word", ["Admitted", "admit", "Axiom", "Parameter", "Conjecture", "give_up"]
)
def test_no_proof_is_left_open(word):
    for name, text in sources().items():
        without_comments = re.sub(r"\(\*.*?\*\)", "", text, flags=re.DOTALL)
        assert not re.search(rf"\b{word}\b", without_comments), name


def test_the_ledger_says_what_is_proved():
    assert proof_of("D4") == "`Experts.D4`"
    assert proof_of("B3").startswith("`Information.B3`, where ŵ_k q̂_k > 0")
    assert proof_of("L2") == "in part: the identity for a token, `Objectives.L2_token`"
    assert proof_of("X1") == "checked only"
    checked_only = {"S9", "S10", "S12"}
    assert {label for label in LEDGER if not main_theorem(label)} == set(PARTLY) | checked_only
    named = {theorem.name for theorems in proved().values() for theorem in theorems}
    for label, words in PARTLY.items():
        assert set(re.findall(rf"`Objectives\.({label}_\w+)`", words)) <= named


@pytest.fixture(scope="module")
def definitions():
    return Definitions.load()


def test_definitions_and_functions_agree(definitions):
    for row in ties(2, definitions=definitions):
        assert row.gap <= TOLERANCE, row


@pytest.mark.parametrize("label", sorted(SIDES))
def test_both_sides_of_a_theorem_are_the_same_rational(definitions, label):
    pairs = list(SIDES[label](Space(5, definitions, Run())))
    assert pairs
    assert [left for left, _ in pairs] == [right for _, right in pairs]
    assert any(left != 0 for left, _ in pairs)


def test_every_tied_label_is_proved():
    assert {row.label for row in TIES} | set(SIDES) <= set(proved())


def without_prior(log_prior, log_p_t):
    return jnp.exp(log_p_t) / jnp.exp(log_p_t).sum()


def static_gate(weights, values):
    return jnp.tensordot(jnp.ones_like(weights) / len(weights), values, 1)


def without_division(
    posterior, x_t, t, schedule, *, num_states, whole=velocities.posterior_to_velocity
):
    return (1 - t) * whole(posterior, x_t, t, schedule, num_states=num_states)


@pytest.mark.parametrize(
    ("module", "name", "mutant", "labels"),
    [
        (mixture, "expert_posterior", without_prior, {"D3", "D4", "D5", "D6"}),
        (mixture, "mix", static_gate, {"D4"}),
        (velocities, "posterior_to_velocity", without_division, {"V5"}),
    ],
)
def test_a_mutation_breaks_the_tie(monkeypatch, definitions, module, name, mutant, labels):
    monkeypatch.setattr(module, name, mutant)
    from dfm_jax.theory import runs

    monkeypatch.setattr(runs, "compiled", runs.compiled.__wrapped__)  # compiles the mutant, too
    near = {"P5", "V5", "V6", "D2", "D3", "D4", "D5", "D6", "D7"}
    rows = ties(1, seed=3, labels=near, definitions=definitions)
    assert {row.label for row in rows if row.gap > 1e-3} == labels
    assert {row.label for row in rows if row.gap <= TOLERANCE} == near - labels


def test_the_evaluator_by_hand(definitions):
    tokens = Finite(range(2))
    token = definitions["Paths.mixture_token"]
    assert token(tokens, Fraction(1, 4), 0, 1, 1) == Fraction(1, 4)
    assert token(tokens, Fraction(1, 4), 0, 1, 0) == Fraction(3, 4)
    experts = Finite("ab")
    gate = definitions["Basics.gate"]
    w = definitions.function(lambda k: Fraction(1, 3) if k == "a" else Fraction(2, 3))
    p = definitions.function(lambda k, z: Fraction(1, 2) if k == "a" else Fraction(z, 4))
    assert gate(experts, w, p, 1, "a") == Fraction(1, 2)
    assert gate(experts, w, p, 0, "b") == 0


def test_logarithms_are_compared_without_rounding():
    two, three, six = (Log.of(Fraction(n)) for n in (2, 3, 6))
    assert two + three == six
    assert Log.of(Fraction(4, 9)) == 2 * (two - three)
    assert Log.of(Fraction(2**400 + 1, 2**400)) != 0  # float64 has 0 here
    assert two * Fraction(1, 2) != three
    assert Log.of(Fraction(1)) == 0
    assert float(Log.of(Fraction(1, 3))) == pytest.approx(-np.log(3), rel=1e-15)


def test_an_unknown_name_of_the_library_is_refused():
    term = {"what": "expr:global", "name": "Ssralg.GRing.unheard_of"}
    machine = Definitions({"Own": [{"name": "f", "takes_field": False, "value": term}]})
    with pytest.raises(KeyError, match=r"use `Ssralg\.GRing\.unheard_of`, which has no definition"):
        machine["Own.f"]


def test_what_is_remembered_changes_no_value_and_saves_most_of_the_time():
    seconds, values = {}, {}
    for remember in (True, False):
        space = Space(1, Definitions.load(remember=remember), Run())
        start = time.process_time()
        values[remember] = [space.token_posterior(space.whole, z, 0, 1) for z in space.support[:1]]
        seconds[remember] = time.process_time() - start
    assert values[True] == values[False]
    assert seconds[False] > 5 * seconds[True]


def test_without_coq_the_build_says_what_brings_it(monkeypatch):
    monkeypatch.setattr(build_module.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"apt-get install .* libcoq-mathcomp-analysis"):
        build()


def test_a_proof_that_coq_refuses_is_named_and_nothing_is_written(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise build_module.RefusedError("Coq refuses Basics.v:\nError: nothing proves this.")

    monkeypatch.setattr(build_module, "build", refuse)
    before = (FOLDER / "index.json").read_bytes()
    assert build_module.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("Coq refuses Basics.v:")
    assert "Nothing is written." in said
    assert (FOLDER / "index.json").read_bytes() == before


@pytest.mark.slow
def test_coq_checks_the_proofs_again():
    if shutil.which("coqc") is None:
        pytest.skip("there is no coqc: `make prove` says what brings it")
    built = build(progress=False)
    assert built["index"] == index()
    assert built["definitions"] == json.loads((FOLDER / "definitions.json").read_text("utf-8"))
