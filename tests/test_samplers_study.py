"""`experiments.samplers`: what it measures, on sources where the answer is known."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from dfm_jax import exact
from dfm_jax.sampling import choices
from experiments.samplers import __main__ as study
from experiments.samplers import chains, measure, peers, report, sources
from experiments.samplers.config import PRESETS, Config, check_config
from experiments.samplers.sources import uniform_path, uniform_posterior

SMALL = Config(
    num_distributions=2,
    length=15,
    num_hidden=3,
    text_symbols=3,
    text_order=2,
    num_sequences=8,
    text_sequences=2,
    batch_size=4,
    random_steps=(4,),
    strides=(2,),
    bounds=(0.1,),
    text_steps=(4,),
    lengths=(16,),
    hidden_sizes=(4,),
    num_blocks=1,
    peers_python="",
)


def rows_of(source):
    return {row["sampler"]: row for row in measure.enumerated(source)}


@pytest.mark.slow
@pytest.mark.statement("S8", "S9")
def test_exact_choices_are_exact_and_the_most_confident_draw_is_not():
    rows = rows_of(sources.dirichlet(1, 0.3, 0)[0])
    for row in rows.values():
        if row["statement"] == "S8":
            assert row["tv"] <= 1e-12
            assert row["passes"] == pytest.approx(5)
    assert rows["most confident draw"]["tv"] > 0.1


@pytest.mark.statement("S9")
def test_coins_have_the_distance_of_the_formula():
    found = rows_of(sources.coins(0.7, 3))["most confident draw"]["tv"]
    assert found == pytest.approx(0.2768, abs=5e-5)


@pytest.mark.statement("S11")
def test_redraws_that_read_the_token_drift():
    rows = measure.drift(sources.dirichlet(1, 0.3, 0)[0])
    for row in rows:
        blind = row["selection"] in ("always", "the less sure the others are")
        assert (row["tv"] <= 1e-12) == blind, row


@pytest.mark.statement("L2")
def test_masks_have_no_slack_and_a_uniform_source_has():
    row = measure.slack(sources.dirichlet(1, 0.3, 0)[0])
    assert abs(row["masks"]) < 1e-9
    assert row["uniform"] > 0.01


@pytest.mark.statement("D5", "B10")
def test_experts_are_the_mixture_under_the_posterior_alone():
    rows = measure.experts(*sources.dirichlet(2, 0.3, 0), 0.4)
    assert {row["gate"]: row["tv"] > 1e-3 for row in rows} == {
        "posterior of the parts": False,
        "static": True,
    }


@pytest.mark.statement("S10")
def test_the_cost_at_length_is_the_enumerated_divergence():
    """A hidden chain that is short enough to list."""
    config = dataclasses.replace(SMALL, length=5, num_sequences=4096, batch_size=1024)
    here = sources.long_sources(config)[0]
    choice = choices.strided(2)
    with jax.enable_x64(True):
        row = chains.cost(here, choice, *chains.sequences(here, config), config)
        probs = exact.sequence_distribution(here.source, config.length)
        short = sources.Short("hidden", 3, config.length, probs)
        drawn, passes = measure.whole_runs(short, short.posterior(), choice)
    assert row["passes"] == passes == 2
    assert row["kl"] == pytest.approx(float(exact.kl(probs, drawn)), abs=5 * row["stderr"])
    assert row["stderr"] < 0.02


def test_information_falls_and_ends_at_the_conditional_entropy():
    here = sources.long_sources(SMALL)[0]
    with jax.enable_x64(True):
        x, _ = chains.sequences(here, SMALL)
        h = chains.information(here, x, SMALL)
    assert (np.diff(h) <= 1e-12).all()
    assert h.shape == (SMALL.length,)


def test_a_lower_bound_is_zero_where_intervals_meet_and_below_the_divergence_else():
    assert chains._least_divergence((0.4, 0.6), (0.5, 0.7)) == 0.0
    bound = chains._least_divergence((0.8, 0.9), (0.1, 0.2))
    assert bound == pytest.approx(0.8 * np.log(4) + 0.2 * np.log(0.25))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_posterior_of_a_uniform_source_is_that_of_enumeration(alpha):
    source = peers.peer_sources(SMALL)[0]
    v, n = source.num_tokens, source.num_positions
    uniform = np.pad(np.full((n, v), 1 / v), ((0, 0), (0, 1)))
    coupling = exact.FactoredCoupling(source.probs, uniform, np.zeros(n, bool))
    path = exact.mixture_token_path(np.full(n, alpha), v, v + 1)
    own = (source.states < v).all(axis=1)
    posterior, _, support = exact.posteriors(coupling, path)
    assert support[own].all()
    np.testing.assert_allclose(uniform_posterior(source, alpha), posterior[own], atol=1e-12)
    np.testing.assert_allclose(
        uniform_path(source, alpha).sum(axis=1),
        exact.marginal_path(coupling, path)[own],
        atol=1e-14,
    )


@pytest.mark.slow
def test_the_whole_study_in_small(tmp_path):
    config = dataclasses.replace(SMALL, out=tmp_path)
    console = Console(width=120, record=True)
    study.run(config, console)
    result = json.loads((tmp_path / "result.json").read_text())
    failed = {row["claim"] for row in result["verdicts"] if not row["passed"]}
    assert failed <= {"hidden chain, KL ≤ 0.05: best blind choice / random, passes"}
    assert (tmp_path / "samplers.png").stat().st_size > 10_000
    assert "diffusers and flow_matching are left out" in console.export_text()
    assert len(report.markdown(result)) == 9
    again = Console(width=120, record=True)
    study.run(config, again)  # every cell is known
    assert " nats in " not in again.export_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 3}, "`batch_size` must divide `num_sequences`"),
        ({"strides": ()}, "`strides` must not be empty"),
        ({"random_steps": (99,)}, "`random_steps` must"),
        ({"stay": 1.5}, "`stay` must"),
        ({"bounds": (-1.0,)}, "`bounds` must"),
        ({"num_hidden": 1}, "`num_hidden` must be at least 2"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_config(dataclasses.replace(SMALL, **change))


def test_presets_are_valid():
    for config in PRESETS.values():
        check_config(config)


def test_a_python_without_the_packages_is_said(tmp_path):
    config = dataclasses.replace(SMALL, peers_python="/bin/false")
    with pytest.raises(ValueError, match="`peers_python` must be a Python with diffusers"):
        peers.drawn(config)
