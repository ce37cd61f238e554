"""Routers fitted by cross-entropy: frequencies, scikit-learn's optimum, what a line cannot part."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dfm_jax.training.router import Layer, fit_router, router_log_probs


def _probs(layers, features):
    return np.asarray(jax.jit(jax.vmap(router_log_probs, (None, 0)))(layers, features))


@jax.jit  # compiled once for all rows of this many features
def _fitted(features, parts, weights, decay):
    options = {"row_weights": weights, "decay": decay, "tolerance": 1e-9}
    return fit_router(jax.random.key(0), features, parts, 4, **options)


def _loss(log_probs, parts):
    return -log_probs[np.arange(len(parts)), parts].mean()


@pytest.fixture
def cells():
    """Rows of one feature out of three, parts of four, every pair of them seen."""
    rng = np.random.default_rng(0)
    of_cell = rng.dirichlet(np.full(4, 2.0), size=3)
    cell = rng.integers(3, size=600)
    parts = np.array([rng.choice(4, p=of_cell[c]) for c in cell])
    counts = np.zeros((3, 4))
    np.add.at(counts, (cell, parts), 1)
    assert counts.min() > 0
    return np.eye(3)[cell], parts, counts


@pytest.mark.slow
@pytest.mark.statement("D11")
def test_the_minimizer_is_the_posterior(cells, x64):
    """Of functions of three values a linear one is any: it finds how often each part was there."""
    features, parts, counts = cells
    found = _fitted(features, parts, np.ones(600), 0.0)
    assert found.converged
    probs = _probs(found.layers, np.eye(3))
    posterior = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(probs), posterior, atol=1e-7)
    conditional = -(counts * np.log(posterior)).sum() / counts.sum()
    np.testing.assert_allclose(found.objective, conditional, atol=1e-12)
    static = counts.sum(0) / counts.sum()  # the falsifier: it loses I(part; feature)
    assert -(counts.sum(0) @ np.log(static)) / counts.sum() > conditional + 1e-2


@pytest.mark.slow
def test_weights_of_rows_count_them(cells, x64):
    """A row of weight 2 is two rows, one of weight 0 is none."""
    features, parts, _ = cells
    weights = np.arange(600) % 3
    weighted = _fitted(features, parts, weights.astype(float), 1e-2)
    rows = np.repeat(np.arange(600), weights)
    repeated = _fitted(features[rows], parts[rows], np.ones(600), 1e-2)
    unweighted = _fitted(features, parts, np.ones(600), 1e-2)
    assert np.abs(weighted.layers[0].weights - unweighted.layers[0].weights).max() > 1e-3
    for one, other in zip(weighted.layers, repeated.layers, strict=True):
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-7)
        np.testing.assert_allclose(one.bias, other.bias, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_a_linear_router_is_the_logistic_regression_of_scikit_learn(decay, x64):
    rng = np.random.default_rng(1)
    parts = rng.integers(4, size=600)
    features = rng.normal(size=(4, 3))[parts] + rng.normal(size=(600, 3))
    found = _fitted(features, parts, np.ones(600), decay)
    peer = LogisticRegression(C=1 / (decay * 600), tol=1e-10, max_iter=10_000)
    expected = peer.fit(features, parts).predict_log_proba(features)
    np.testing.assert_allclose(_probs(found.layers, features), expected, atol=1e-5)
    objective = _loss(expected, parts) + decay / 2 * (peer.coef_**2).sum()
    np.testing.assert_allclose(found.objective, objective, rtol=1e-9)
    assert found.converged


@pytest.mark.slow
def test_a_hidden_layer_parts_what_a_line_cannot_and_a_stopped_descent_says_so(x64):
    corners = np.array([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    parts = np.array([0, 0, 1, 1])
    rows = np.pad(np.tile(corners, (150, 1)), ((0, 0), (0, 1)))
    line = _fitted(rows, np.tile(parts, 150), np.ones(600), 0.0)
    assert line.objective > np.log(2) - 1e-9  # no better than chance
    options = {"hidden": (8,), "tolerance": 1e-9, "max_steps": 20}
    fit = jax.jit(lambda key, rows: fit_router(key, rows, parts, 2, **options))
    curve = fit(jax.random.key(0), corners)
    assert curve.objective < 0.01
    assert not curve.converged
    assert curve.num_steps == 20
    assert [layer.weights.shape for layer in curve.layers] == [(8, 2), (2, 8)]


def test_a_router_is_the_softmax_of_what_it_says(x64):
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    bias, last = rng.normal(size=4), rng.normal(size=2)
    layers = tuple(Layer(*map(jnp.asarray, pair)) for pair in ((first, bias), (second, last)))
    features = rng.normal(size=3)
    inner = first @ features + bias
    inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    outer = second @ inner + last
    expected = outer - np.log(np.exp(outer).sum())
    found = jax.jit(router_log_probs)(layers, jnp.asarray(features))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


REFUSED = {
    "a part that is no expert": ({"parts": np.array([0, 2])}, "`parts` must"),
    "a NaN": ({"features": np.array([[0.0], [np.nan]])}, "`features` must be finite"),
    "no row that counts": ({"row_weights": np.zeros(2)}, "`row_weights` must not all be 0"),
    "a negative weight": ({"row_weights": np.array([1.0, -1.0])}, "`row_weights` must lie in"),
    "a negative decay": ({"decay": -1.0}, "`decay` must lie in [0, inf); got decay = -1.0."),
    "no step": ({"max_steps": 0}, "`max_steps` must be at least 1; got max_steps = 0."),
    "a layer of no width": ({"hidden": (0,)}, "`hidden` must be at least 1; got hidden = 0."),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_by_name(changes, message):
    call = {"features": np.zeros((2, 1)), "parts": np.array([0, 1]), "num_experts": 2} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_router(jax.random.key(0), **call)
