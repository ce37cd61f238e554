"""State, step and loss: against float64 oracles, micro-batches, runs under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.models import Network
from dfm_jax.objectives import step_loss
from dfm_jax.schedules import left_to_right, linear, masked
from dfm_jax.steps import step_size
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.training.losses import masked_losses, next_token_losses
from dfm_jax.training.state import (
    TrainState,
    init_state,
    is_matrix,
    learning_rate_shape,
    make_optimizer,
    with_hyperparameters,
)
from dfm_jax.training.step import make_evaluation, make_train_step

V, N, B = 5, 6, 4
CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=2, weight_decay=0.2, max_norm=0.05)
STEPS = 8


def bigram() -> Network:
    """A table of next tokens by the token before, the mask included, and a bias."""

    def init(key):
        return {"table": jax.random.normal(key, (V + 1, V)), "bias": jnp.zeros(V)}

    def apply(params, x_t, t=None, *, key=None):
        shift = 0.0 if t is None else t
        return params["table"][x_t] + params["bias"][None] * (1 + shift)

    return Network(init, apply)


def batch_of(seed: int, *, ragged: bool = True) -> Batch:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, N + 1, B) if ragged else np.full(B, N)
    valid = np.arange(N)[None] < lengths[:, None]
    tokens = np.where(valid, random.integers(0, V, (B, N)), 0)
    return Batch(tokens.astype(np.int32), valid)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def oracle_loss(params, batch):
    """Nats per valid token and its gradient, in NumPy float64, one token at a time."""
    table, bias = (np.asarray(params[name], np.float64) for name in ("table", "bias"))
    nats, count = 0.0, int(batch.valid.sum())
    grads = {"table": np.zeros_like(table), "bias": np.zeros_like(bias)}
    for tokens, valid in zip(np.asarray(batch.tokens), np.asarray(batch.valid), strict=True):
        before = V
        for token, counts in zip(tokens, valid, strict=True):
            if counts:
                probs = np.exp(log_softmax(table[before] + bias))
                nats -= np.log(probs[token])
                row = (probs - np.eye(V)[token]) / count
                grads["table"][before] += row
                grads["bias"] += row
            before = token
    return nats / count, grads


def oracle_steps(params, batches):
    """AdamW as its paper writes it, in NumPy float64: clipped, corrected, decayed by hand."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    m = {name: np.zeros_like(value) for name, value in params.items()}
    v = {name: np.zeros_like(value) for name, value in params.items()}
    losses, norms = [], []
    for s, batch in enumerate(batches):
        loss, grads = oracle_loss(params, batch)
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        losses.append(loss)
        norms.append(norm)
        if s < 2:
            rate = 0.1 * (s + 1) / 2
        else:
            rate = 0.1 * (0.1 + 0.9 * (1 + np.cos(np.pi * (s - 2) / 6)) / 2)
        for name in params:
            g = grads[name] * min(1.0, 0.05 / norm)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            direction = m[name] / (1 - 0.9 ** (s + 1))
            direction /= np.sqrt(v[name] / (1 - 0.95 ** (s + 1))) + 1e-8
            decay = 0.2 * params[name] if name == "table" else 0.0
            params[name] = params[name] - rate * (direction + decay)
    return params, losses, norms


def begun(key, **options):
    """State 0, in one program."""
    network, optimizer = bigram(), make_optimizer(CONFIG, STEPS)
    return jax.jit(lambda key: init_state(key, network, optimizer, **options))(key)


def drawn_params(seed):
    return jax.jit(bigram().init)(jax.random.key(seed))


def make(*, num_micro_batches=1, ema_decay=None):
    network, optimizer = bigram(), make_optimizer(CONFIG, STEPS)
    step = make_train_step(
        next_token_losses(network, start=V),
        optimizer,
        num_micro_batches=num_micro_batches,
        ema_decay=ema_decay,
    )
    return begun(jax.random.key(1), ema=ema_decay is not None), jax.jit(step)


@pytest.mark.slow
def test_steps_are_those_of_a_float64_oracle(x64):
    """Loss, clipping, both moments, warm-up, cosine and the decay of matrices alone."""
    state, step = make()
    batches = [batch_of(seed) for seed in range(STEPS)]
    expected, losses, norms = oracle_steps(state.params, batches)
    assert norms[0] > CONFIG.max_norm  # so that clipping is part of it
    for s, batch in enumerate(batches):
        state, metrics = step(state, batch, jax.random.key(s))
        np.testing.assert_allclose(metrics.loss, losses[s], rtol=1e-6)
        np.testing.assert_allclose(metrics.gradient_norm, norms[s], rtol=1e-6)
        assert metrics.num_tokens == batch.valid.sum()
    for name, value in expected.items():
        np.testing.assert_allclose(state.params[name], value, rtol=1e-5)
    assert state.step == STEPS


@pytest.mark.slow
def test_micro_batches_of_unequal_tokens_are_the_whole_batch():
    """The parts hold 1 to 2N tokens each, so a mean of their means would be another number."""
    state, whole = make()
    _, parts = make(num_micro_batches=4)
    batch = batch_of(3)
    lengths = batch.valid.sum(axis=1)
    assert len(set(lengths.tolist())) > 1
    one, a = whole(state, batch, jax.random.key(0))
    four, b = parts(state, batch, jax.random.key(0))
    assert a.num_tokens == b.num_tokens
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-6)
    np.testing.assert_allclose(a.gradient_norm, b.gradient_norm, rtol=1e-6)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)
    rows = [jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], batch) for b in range(B)]
    per_sequence = [oracle_loss(state.params, row)[0] for row in rows]
    assert abs(np.mean(per_sequence) - float(a.loss)) > 1e-3  # the wrong reduction


@pytest.mark.slow
def test_micro_batches_draw_the_same_dropout():
    network, optimizer = bigram(), make_optimizer(CONFIG, STEPS)

    def apply(params, x_t, t=None, *, key):
        kept = jax.random.bernoulli(key, 0.5, (N, V))
        return jnp.where(kept, 2 * network.apply(params, x_t), 0.0)

    terms = next_token_losses(Network(network.init, apply), start=V)
    state = begun(jax.random.key(1))
    one, two = (
        jax.jit(make_train_step(terms, optimizer, num_micro_batches=parts)) for parts in (1, 2)
    )
    losses = [
        float(step(state, batch_of(3), jax.random.key(seed))[1].loss)
        for step, seed in ((one, 0), (two, 0), (one, 9))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert abs(losses[0] - losses[2]) > 1e-4


@pytest.mark.slow
def test_the_average_begins_at_the_first_parameters_and_keeps_d_to_the_n_of_them():
    state, step = make(ema_decay=0.75)
    seen = [state.params["bias"]]
    for s in range(4):
        state, _ = step(state, batch_of(s), jax.random.key(s))
        seen.append(state.params["bias"])
    weights = [0.75**4, *(0.25 * 0.75 ** (4 - n) for n in range(1, 5))]
    expected = sum(w * np.asarray(p, np.float64) for w, p in zip(weights, seen, strict=True))
    np.testing.assert_allclose(state.ema["bias"], expected, rtol=1e-5)


@pytest.mark.slow
def test_runs_under_vmap_are_runs_in_a_loop():
    """Three runs that differ in seed, rate and decay are one program, and the same numbers."""
    network, optimizer = bigram(), make_optimizer(CONFIG, STEPS)
    train_step = make_train_step(next_token_losses(network, start=V), optimizer)
    rates, decays = np.float32([0.1, 0.01, 0.3]), np.float32([0.0, 0.2, 0.5])

    def begin(key, rate, decay):
        state = init_state(key, network, optimizer)
        return with_hyperparameters(state, learning_rate=rate, weight_decay=decay)

    def run(state):
        for s in range(3):
            state, metrics = train_step(state, batch_of(s), jax.random.key(s))
        return state, metrics

    states = jax.jit(jax.vmap(begin))(jax.random.split(jax.random.key(5), 3), rates, decays)
    together, metrics = jax.jit(jax.vmap(run))(states)
    states, alone = jax.device_get(states), jax.jit(run)
    ends = []
    for r in range(3):
        end, one = alone(jax.tree.map(lambda leaf, r=r: leaf[r], states))
        ends.append(end.params["table"])
        np.testing.assert_allclose(metrics.loss[r], one.loss, rtol=1e-6)
        for left, right in zip(jax.tree.leaves(together), jax.tree.leaves(end), strict=True):
            np.testing.assert_allclose(left[r], right, rtol=2e-5, atol=1e-6)
    assert np.abs(np.subtract(*ends[:2])).max() > 0.01


@pytest.mark.slow
def test_a_step_compiles_once_and_may_be_given_its_state():
    network, optimizer = bigram(), make_optimizer(CONFIG, STEPS)
    train_step = make_train_step(next_token_losses(network, start=V), optimizer, ema_decay=0.9)
    state, kept = (begun(jax.random.key(1), ema=True) for _ in range(2))
    traces = []

    def counted(*args):
        traces.append(1)
        return train_step(*args)

    donated, plain = jax.jit(counted, donate_argnums=0), jax.jit(train_step)
    for s in range(3):
        state, _ = donated(state, batch_of(s), jax.random.key(s))
        kept, _ = plain(kept, batch_of(s), jax.random.key(s))
    assert len(traces) == 1
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(left, right)


def test_matrices_decay_and_the_stacked_norms_of_a_scan_do_not():
    params = {"layers": {"norm": {"scale": np.ones((3, 4))}, "kernel": np.ones((3, 4, 4))}}
    params |= {"bias": np.ones(4), "embedding": np.ones((5, 4))}
    assert is_matrix(params) == {
        "layers": {"norm": {"scale": False}, "kernel": True},
        "bias": False,
        "embedding": True,
    }


@pytest.mark.slow
def test_the_rate_rises_to_its_peak_and_ends_at_its_fraction():
    rate = jax.jit(jax.vmap(lambda s: learning_rate_shape(s, 4, 12, 0.1)))
    shape = np.asarray(rate(np.arange(13)))
    np.testing.assert_allclose(shape[:4], [0.25, 0.5, 0.75, 1.0])
    assert shape[4] == 1.0
    assert np.all(np.diff(shape[4:]) < 0)
    np.testing.assert_allclose(shape[[8, 12]], [0.55, 0.1], rtol=1e-6)


def test_unknown_hyperparameters_are_refused():
    state, _ = make()
    with pytest.raises(ValueError, match=r"must be one of .*num_steps.*; got name = 'b1'"):
        with_hyperparameters(state, b1=jnp.array(0.5))


# ── what is paid ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("A4")
def test_the_next_token_terms_are_the_flow_loss_of_the_left_to_right_table():
    """Σ_t of the grid's step losses, each from its own state, is the next-token loss, by term."""
    network = bigram()
    params = drawn_params(2)
    batch = jax.tree.map(lambda leaf: leaf[0], batch_of(1, ragged=False))
    terms = jax.jit(next_token_losses(network, start=V))(params, batch)
    table, x_1 = left_to_right(N), batch.tokens

    @jax.jit
    @jax.vmap
    def losses(t):
        x_t = jnp.where(jnp.arange(N) < t, x_1, V)
        before = jnp.concatenate([jnp.array([V]), x_t[:-1]])
        return step_loss(network.apply(params, before), x_1, x_t, step_size(table, t))

    total = losses(jnp.arange(N)).sum(axis=0)
    np.testing.assert_allclose(terms.nats, total, rtol=1e-5)


@pytest.mark.slow
def test_without_a_start_the_first_token_is_given():
    network = bigram()
    params = drawn_params(2)
    batch = jax.tree.map(lambda leaf: leaf[0], batch_of(1, ragged=False))

    def paid(start):
        terms = next_token_losses(network, start=start)
        return jax.jit(lambda params, batch: terms(params, batch, None))(params, batch)

    given, every = paid(None), paid(V)
    assert given.counts.tolist() == [False] + [True] * (N - 1)
    assert given.nats[0] == 0
    np.testing.assert_array_equal(given.nats[1:], every.nats[1:])


@pytest.mark.slow
@pytest.mark.statement("L5")
def test_the_masked_terms_are_unbiased_for_the_grid_bound():
    """Against Σ_t Σ_masks, enumerated in float64; 4,000 draws, four standard errors."""
    network = bigram()
    params = drawn_params(2)
    valid = np.array([True, True, True, False])
    x_1 = np.array([1, 4, 2, 0])
    steps = 3
    table = np.asarray(masked(linear(), steps, 4), np.float64)
    rows = np.asarray(params["table"], np.float64)
    bound = 0.0
    for t in range(steps):
        now, then = table[t, 0], table[t + 1, 0]
        share = (then - now) / (1 - now)
        for mask in np.ndindex(2, 2, 2):
            at = np.array([*mask, 0], bool)
            chance = np.prod(np.where(at[:3], 1 - now, now))
            x_t = np.where(at, V, x_1)
            logits = rows[x_t] + np.asarray(params["bias"]) * (1 + t / steps)
            bound -= chance * share * log_softmax(logits)[at, x_1[at]].sum()
    terms = masked_losses(network, masked(linear(), steps, 4), time_conditioned=True)
    batch = Batch(jnp.asarray(x_1), jnp.asarray(valid))
    draw = jax.jit(jax.vmap(lambda key: terms(params, batch, key).nats.sum()))
    draws = np.asarray(draw(jax.random.split(jax.random.key(3), 4000)), np.float64)
    assert abs(draws.mean() - bound) < 4 * draws.std() / np.sqrt(4000)
    assert draws.std() / np.sqrt(4000) < 0.05 * bound  # so a factor T or λ would be seen


def test_padding_is_never_masked_and_never_paid_for():
    seen = []

    def apply(params, x_t, t=None, *, key=None):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x_t)
        return jnp.zeros((N, V))

    terms = masked_losses(
        Network(bigram().init, apply), masked(linear(), 4, N), time_conditioned=False
    )
    valid = jnp.arange(N) < 2
    paid = jax.jit(terms)({}, Batch(jnp.zeros(N, jnp.int32), valid), jax.random.key(0))
    jax.effects_barrier()
    assert np.all(seen[0][2:] == 0)
    assert not np.asarray(paid.nats)[2:].any()


def test_the_masked_objective_needs_a_key():
    terms = masked_losses(bigram(), masked(linear(), 4, N), time_conditioned=False)
    with pytest.raises(ValueError, match="`key` must be given"):
        terms({}, Batch(jnp.zeros(N, jnp.int32), jnp.ones(N, bool)), None)


def test_an_evaluation_is_sums_per_sequence():
    network = bigram()
    params = drawn_params(2)
    batch = batch_of(3)
    paid = jax.jit(make_evaluation(next_token_losses(network, start=V)))(params, batch)
    assert paid.counts.tolist() == batch.valid.sum(axis=1).tolist()
    loss, _ = oracle_loss(params, batch)
    np.testing.assert_allclose(paid.nats.sum() / paid.counts.sum(), loss, rtol=1e-6)


def test_bf16_logits_are_judged_in_float32():
    def apply(params, x_t, t=None, *, key=None):
        return jnp.zeros((N, V), jnp.bfloat16)

    terms = next_token_losses(Network(bigram().init, apply), start=V)
    paid = terms({}, jax.tree.map(lambda leaf: leaf[0], batch_of(1, ragged=False)), None)
    np.testing.assert_allclose(paid.nats, np.log(V), rtol=1e-6)


def test_a_state_is_a_pytree_of_arrays():
    state, _ = make(ema_decay=0.5)
    assert isinstance(state, TrainState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_mask_beyond_the_type_of_the_tokens_does_not_wrap(dtype):
    """V = 256 stands before every sequence of bytes; in 8 bits it would be id 0, or -128."""
    network = Network(lambda key: None, lambda p, x, t=None, *, key=None: p[x])
    params = np.random.default_rng(0).normal(size=(257, 256)).astype(np.float32)
    losses = next_token_losses(network, start=256)
    terms = jax.jit(lambda params, batch: losses(params, batch, None).nats)
    tokens, valid = np.array([3, 100, 7]), np.ones(3, bool)
    expected = terms(params, Batch(tokens.astype(np.int32), valid))
    np.testing.assert_array_equal(terms(params, Batch(tokens.astype(dtype), valid)), expected)
