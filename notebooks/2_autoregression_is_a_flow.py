# %% [markdown]
# # Autoregression is a flow
#
# A schedule may differ between positions. Let each jump from 0 to 1 at its own step, and the flow
# of the [first notebook](1_paths_and_velocities.ipynb) is left-to-right generation: its velocity
# is the next-token distribution, its loss the next-token loss. Other tables give any other order,
# blocks and masked diffusion. They differ in how many tokens move at once, and that has a cost.
#
# Labels: **A1–A5** (autoregression), **Q2–Q6** (discrete time), **S1**, **S2** (samplers), **L5**
# (the loss on a grid); each is stated in [EQUATIONS.md](../EQUATIONS.md). Positions count from 0.
# About half a minute on two cores.

# %%
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from dfm_jax import exact, objectives, paths, sampling, schedules, steps, velocities

jax.config.update("jax_enable_x64", True)
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})
plt.rcParams.update({"legend.frameon": False, "figure.constrained_layout.use": True})
V, S = 2, 3  # tokens a and b; with the mask, which is state 2


def apart(got, truth):
    """The largest difference."""
    return float(np.max(np.abs(np.asarray(got) - np.asarray(truth))))


# %% [markdown]
# ## The order of generation is a table
#
# $\kappa[t, i]$ says how far position $i$ has come by step $t$: 0 is the source, 1 the data
# (**A1**). Left to right, $\kappa[t,i]=\mathbb 1[i<t]$; in any order or in blocks,
# $\kappa[t,i]=\mathbb 1[\text{block}(i)<t]$; in masked diffusion $\kappa[t,i]=\kappa_{t/T}$.

# %%
tables = {
    "left to right": schedules.left_to_right(6),
    "any order": schedules.any_order(np.array([3, 0, 5, 1, 4, 2])),
    "blocks of two": schedules.blocks(np.array([0, 0, 1, 1, 2, 2])),
    "evens, then odds": schedules.blocks(np.array([0, 1, 0, 1, 0, 1])),
    "masked, cosine": schedules.masked(schedules.cosine(), 6, 6),
}
for table in tables.values():
    schedules.check_table(table)

figure, axes = plt.subplots(1, 5, figsize=(11, 2.6), sharey=True)
for axis, (label, table) in zip(axes, tables.items(), strict=True):
    rows = np.asarray(table)
    edges = np.arange(7) - 0.5, np.arange(len(rows) + 1) - 0.5
    image = axis.pcolormesh(*edges, rows, vmin=0, vmax=1, edgecolor="white", lw=1)
    axis.set_title(label, fontsize=10)
    axis.set(xlabel="position i", xticks=range(6), ylim=(6.5, -0.5))
axes[0].set(ylabel="step t", yticks=range(7))
figure.colorbar(image, ax=axes, label="κ[t, i]")
plt.show()

# %% [markdown]
# ## The distribution on the way
#
# Three positions are enough to see it: 27 sequences with masks. The data are a sticky chain: the
# first token is fair, each later one repeats the one before with probability 0.8. Under a
# left-to-right table and a source of masks the distribution at step $t$ is the data's distribution
# of a prefix, $$p_t(x)=q(x^{<t})\,\mathbb 1[x^{\ge t}=m]\qquad(\textbf{A2}),$$
# and the path of distributions is autoregressive generation, seen from above.


# %%
def sticky(num_positions, stay=0.8):
    """The distribution of a chain that repeats its token with probability `stay`: [V^N]."""
    repeats = np.diff(exact.states(V, num_positions), axis=1) == 0
    return 0.5 * np.prod(np.where(repeats, stay, 1 - stay), axis=1)


@jax.jit
def probs(kappa, log_q):
    """p over all sequences with masks, for one row of a table."""
    n = kappa.shape[0]
    tokens, states = jnp.array(exact.states(V, n)), jnp.array(exact.states(S, n))
    one = partial(paths.mixture_path, jnp.full(n, V), kappa_t=kappa, num_states=S)
    token_paths = jax.vmap(one)(tokens)
    return jnp.exp(jax.vmap(lambda z: paths.marginal_log_prob(z, token_paths, log_q))(states))


# %%
N = 3
q = sticky(N)
tokens, states = jnp.array(exact.states(V, N)), jnp.array(exact.states(S, N))
names = ["".join("ab·"[v] for v in z) for z in states.tolist()]
shown = {
    "left to right": schedules.left_to_right(N),
    "order 2, 0, 1": schedules.any_order(np.array([2, 0, 1])),
    "0 and 2, then 1": schedules.blocks(np.array([0, 1, 0])),
    "masked, cosine": schedules.masked(schedules.cosine(), 12, N),
}
token_probs = {
    label: jax.vmap(probs, (0, None))(table, jnp.log(q)) for label, table in shown.items()
}


def prefix_probs(t):
    """A2, counted: q(x^{<t}) on the sequences whose other positions are masks."""
    counted = np.zeros(len(states))
    for x, mass in zip(np.asarray(tokens), q, strict=True):
        counted[np.where(np.arange(N) < t, x, V) @ [9, 3, 1]] += mass
    return counted


gap = apart(token_probs["left to right"], [prefix_probs(t) for t in range(N + 1)])
print(f"A2, left to right against the distribution of prefixes: {gap:.0e}")
assert gap < 1e-15

# %%
masks = exact.FactoredCoupling(q, np.eye(S)[[V] * N], np.zeros(N, bool))
for label, table in shown.items():
    rows = np.asarray(table)
    truth = [exact.marginal_path(masks, exact.mixture_token_path(row, V, S)) for row in rows]
    print(f"{label:16s} p_t against enumeration {apart(token_probs[label], truth):.0e}")
    assert apart(token_probs[label], truth) < 1e-15

# %%
last_first = np.argsort(np.asarray(states == V).sum(axis=1), kind="stable")  # data at the top
figure, axes = plt.subplots(1, 4, figsize=(10, 4.6), sharey=True)
for axis, (label, values) in zip(axes, token_probs.items(), strict=True):
    image = axis.pcolormesh(np.sqrt(np.asarray(values)[:, last_first].T), vmin=0, vmax=1)
    axis.set_xticks(np.arange(0, len(values), max(1, len(values) // 4)) + 0.5)
    axis.set_xticklabels(range(0, len(values), max(1, len(values) // 4)))
    axis.set(xlabel="step t", ylim=(27, 0))
    axis.set_title(label, fontsize=10)
axes[0].set_yticks(np.arange(27) + 0.5, np.array(names)[last_first], family="monospace", fontsize=8)
axes[0].set(ylabel="sequence x")
figure.colorbar(image, ax=axes, label="√p_t(x)")
plt.show()

# %% [markdown]
# All begin in `···` and end in $q$ (the top eight rows). They differ in the way, and in how many
# sequences they may meet on it.

# %%
for label, values in token_probs.items():
    print(f"{label:16s} sequences possible at each step: {np.sum(values > 0, axis=1).tolist()}")

# %% [markdown]
# ## The next-token distribution is the velocity
#
# In discrete time a step of the flow is $\lambda_t^i\,[p_{1|t}^i-\delta_{z^i}]$ with
# $\lambda_t^i=\frac{\kappa_{t+1}^i-\kappa_t^i}{1-\kappa_t^i}$ (**Q3**). On the left-to-right table
# $\lambda$ is 1 at position $t$ and 0 elsewhere, so this is (**A3**)
# $$u_t^i(v,z)=\mathbb 1[i=t]\,\big(q(v\mid z^{<t})-\delta_{z^i}(v)\big).$$
# Two library calls, `exact_step_velocity` of the flow and `next_token_velocity` of autoregression,
# must agree wherever $p_t(z)>0$; the next-token distributions are counted by `exact.conditionals`.

# %%
next_token, _ = exact.conditionals(q, V, N)  # [8, N, V], entry [x, t] given x^{<t}


def flow_velocity(z, t, table, log_q):
    """Q3, with the posterior of an all-mask source (P7)."""
    posterior = paths.revealed_posterior(z, tokens, log_q, mask_id=V)
    return steps.exact_step_velocity(posterior, z, steps.step_size(table, t), num_states=S)


def all_velocities(table, log_q):
    """[T, Z, N, S]: every step, every state."""
    over_states = jax.vmap(flow_velocity, (0, None, None, None))
    every = jnp.arange(len(table) - 1)
    return jax.jit(jax.vmap(over_states, (None, 0, None, None)))(states, every, table, log_q)


def autoregression(t, rows):
    """A3 at every state, from a table of next-token distributions: [Z, N, S]."""
    prefix = np.where(np.arange(N) < t, states, 0) % V  # the row of a sequence that begins so
    one = partial(steps.next_token_velocity, t=t, num_states=S)
    return jax.vmap(lambda row, z: one(row, z))(rows[prefix @ [4, 2, 1], t], states)


u = all_velocities(shown["left to right"], jnp.log(q))
live = np.asarray(token_probs["left to right"][:-1] > 0)
by_token = jnp.stack([autoregression(t, next_token) for t in range(N)])
gap = apart(by_token[live], u[live])
print(
    f"A3, the flow's velocity against the next-token distribution: {gap:.0e} at {live.sum()} states"
)
assert gap < 1e-15

# %% [markdown]
# The falsifier forgets the prefix: the velocity is then the token's marginal. Each step is still
# valid and moves one token, but the flow ends elsewhere, in a distribution of independent tokens.


# %%
def pushed(velocity):
    """The distribution after all steps of a velocity [T, Z, N, S]."""
    p = np.eye(len(states))[-1]  # all masks
    for u in velocity:
        p = exact.push_forward(p, np.asarray(jax.vmap(steps.step_probs)(u, states)))
    return p


marginals = np.stack([exact.marginal(q, (i,), V, N) for i in range(N)])
forgetful = np.broadcast_to(marginals, next_token.shape)
by_marginal = jnp.stack([autoregression(t, forgetful) for t in range(N)])
right, wrong = (exact.kl(exact.embed(q, V, S, N), pushed(v)) for v in (by_token, by_marginal))
correlation = exact.total_correlation(q, V, N)
print(f"KL(q ‖ end of the flow): {abs(right):.0e} nats; without the prefix {wrong:.4f} nats")
print(f"total correlation of the three tokens: {correlation:.4f} nats")
assert abs(right) < 1e-14
assert abs(wrong - correlation) < 1e-13

# %% [markdown]
# It is a valid step (**Q2**), it satisfies the discrete continuity equation (**Q4**) and pushes
# $p_t$ to $p_{t+1}$ exactly (**Q5**):
# $$p_{t+1}(x)-p_t(x)+\mathrm{div}_x(p_tu_t)=0,\qquad
# p_{t+1}(x)=\sum_z p_t(z)\prod_i\big(\delta_{z^i}+u_t^i(\cdot,z)\big)(x^i).$$
# Both hold for any table that moves one position at a time. Where a step moves two, the joint
# distribution of the two is missed: that is the falsifier, and the subject of the rest.


# %%
@jax.jit
def residuals(p, then, u):
    """The largest gap of Q2, Q4, Q5 in one step, over states."""
    u = jnp.where((p > 0)[:, None, None], u, 0.0)  # elsewhere it is not defined
    valid = jax.vmap(steps.step_violation)(u, states)
    continuity = then - p + velocities.divergence(p, u, states)
    pushed = steps.push_forward(p, jax.vmap(steps.step_probs)(u, states), states)
    gaps = (valid, jnp.abs(continuity), jnp.abs(pushed - then))
    return jnp.stack([jnp.max(gap) for gap in gaps])


found = {}
for label, table in shown.items():
    p, u = token_probs[label], all_velocities(table, jnp.log(q))
    by_step = [residuals(p[t], p[t + 1], u[t]) for t in range(len(u))]
    found[label] = np.max(by_step, axis=0)
for label, (valid, continuity, push) in found.items():
    print(f"{label:16s} Q2 {valid:.0e}   Q4 {continuity:.0e}   Q5 {push:.0e}")
assert max(*found["left to right"], *found["order 2, 0, 1"]) < 1e-15
assert min(found["0 and 2, then 1"][1:]) > 0.05

# %% [markdown]
# ## The loss is the next-token loss
#
# The objective of the flow on a grid (**L5**) is, for an all-mask source and any model $\hat p$,
# $$\sum_t\sum_i\lambda_t^i\,\mathbb 1[X_t^i=m]\,\big(-\log\hat p^i(x_1^i\mid X_t)\big).$$
# On the left-to-right table it is the next-token negative log-likelihood, term by term (**A4**).
# The model here is a random distribution $\hat q$, far from the data. Nothing is averaged: the
# identity holds for each $x_1$.

# %%
q_hat = np.random.default_rng(0).dirichlet(np.ones(V**N))
table = schedules.left_to_right(N)


def loss_terms(x_1, t):
    """The term of every position in step t, weighted by λ; and unweighted."""
    z = jnp.where(table[t] == 1, x_1, V)  # X_t: the prefix, then masks
    log_p = jnp.log(paths.revealed_posterior(z, tokens, jnp.log(q_hat), mask_id=V))
    size = steps.step_size(table, t)
    weighted = objectives.step_loss(log_p, x_1, z, size)
    return weighted, objectives.cross_entropy_loss(log_p, x_1)


every = jax.vmap(jax.vmap(loss_terms, (None, 0)), (0, None))
terms, plain = jax.jit(every)(tokens, jnp.arange(N))  # [8, T, N] each, in nats
taken = np.take_along_axis(exact.conditionals(q_hat, V, N)[0], np.asarray(tokens)[..., None], 2)
next_token_nll = -np.log(taken[..., 0])  # [8, N]
gap = apart(terms.sum(axis=2), next_token_nll)
print(f"A4, term by term over {len(tokens)} sequences: {gap:.0e} nats")
whole = apart(terms.sum(axis=(1, 2)), -np.log(q_hat))
print(f"summed, against −log q̂(x): {whole:.0e} nats")
assert max(gap, whole) < 1e-14

# %% [markdown]
# Without $\lambda$ (**L1**) every masked position is charged at every step. That is a fair loss to
# train on, with the same minimizer, but no longer the likelihood of the sequence. Here is one,
# $x_1$ = `aba`.

# %%
x_1 = 2  # aba
figure, axes = plt.subplots(1, 2, figsize=(6, 2.6), sharey=True)
for axis, values, label in ((axes[0], terms[x_1], "with λ"), (axes[1], plain[x_1], "without λ")):
    image = axis.imshow(values, vmin=0, vmax=float(plain[x_1].max()))
    for (t, i), nats in np.ndenumerate(np.abs(values)):
        ink = "black" if nats > 3 else "white"
        axis.text(i, t, f"{nats:.2f}", ha="center", va="center", color=ink)
    axis.set(xlabel="position i", xticks=range(N), yticks=range(N))
    axis.set_title(f"{label}: {values.sum():.2f} nats in all", fontsize=10)
axes[0].set(ylabel="step t")
figure.colorbar(image, ax=axes, label="nats")
plt.show()
print(f"−log q̂(aba) = {-np.log(q_hat[x_1]):.2f} nats")

# %% [markdown]
# ## The cost of parallelism
#
# A step that draws several tokens at once draws them as if they were independent given what is
# known. For fixed sets $B_1,\dots,B_T$ that partition the positions (**Q6**),
# $$\mathrm{KL}(q\,\|\,q_{\text{parallel}})=\sum_s\mathbb E_q\,
# \mathrm{TC}\big(X^{B_s}\mid X^{B_1\cup\dots\cup B_{s-1}}\big),\qquad
# \mathrm{TC}=\textstyle\sum_i H(X^i\mid\cdot)-H(X^B\mid\cdot).$$
# Take six tokens of the sticky chain, and for comparison six tokens that are independent and not
# fair. `steps.parallel_log_prob` gives the distribution of the parallel sampler; the right-hand
# side is summed by `exact.conditional_total_correlation`.

# %%
N = 6
tokens, states = jnp.array(exact.states(V, N)), jnp.array(exact.states(S, N))
chain = sticky(N)
coins = np.prod(np.where(exact.states(V, N) == 0, 0.3, 0.7), axis=1)


@jax.jit
def parallel_probs(block_of, q):
    """The distribution of the sampler that draws a block at once: [64]."""
    one = partial(steps.parallel_log_prob, states=tokens, log_probs=jnp.log(q))
    return jnp.exp(jax.vmap(lambda x: one(x, block_of))(tokens))


def parallel_cost(block_of, q):
    """KL(q ‖ q_parallel) in nats, against the sum of total correlations."""
    distance = exact.kl(q, np.asarray(parallel_probs(block_of, q)))
    sets = [tuple(np.flatnonzero(block_of == s).tolist()) for s in range(max(block_of) + 1)]
    known = [tuple(np.flatnonzero(block_of < s).tolist()) for s in range(max(block_of) + 1)]
    pairs = zip(sets, known, strict=True)
    truth = sum(exact.conditional_total_correlation(q, b, a, V, N) for b, a in pairs)
    assert abs(distance - truth) < 1e-13
    return float(distance)


# %%
runs = {size: np.arange(N) // size for size in (1, 2, 3, 6)}  # neighbors together
combs = {size: np.arange(N) % (N // size) for size in (1, 2, 3, 6)}  # neighbors apart
prices = {
    "chain, neighbors together": {b: parallel_cost(block, chain) for b, block in runs.items()},
    "chain, neighbors apart": {b: parallel_cost(block, chain) for b, block in combs.items()},
    "independent tokens": {b: parallel_cost(block, coins) for b, block in runs.items()},
}
everything = steps.total_correlation(jnp.array(chain), tokens, num_tokens=V)
assert abs(everything - prices["chain, neighbors together"][6]) < 1e-13
for label, row in prices.items():
    print(f"{label:27s}", "  ".join(f"{size} at once: {max(p, 0):.3f}" for size, p in row.items()))
print(f"total correlation of all six tokens: {everything:.3f} nats")

# %% [markdown]
# One at a time is free in every order, and independent tokens are free at any number. For the chain
# the cost is not a matter of the number alone. Two halves of three neighbors and the even
# positions followed by the odd ones both take two steps, at very different costs: given its two
# neighbors, an odd token is independent of the other odd ones, so the second step is free.

# %%
second = exact.conditional_total_correlation(chain, (1, 3, 5), (0, 2, 4), V, N)
cost = {label: prices[label][3] for label in list(prices)[:2]}
print("two steps:", "  ".join(f"{label} {p:.3f} nats" for label, p in cost.items()))
print(f"the second step of evens, then odds: {abs(second):.0e} nats")
assert abs(second) < 1e-14

# %% [markdown]
# Which two steps are the cheapest? Each position goes into the first set or the second: with both
# sets in use there are 62 ways.

# %%
ways = [np.array(way) for way in exact.states(2, N)[1:-1]]
cheapest = sorted((parallel_cost(way, chain), way.tolist()) for way in ways)
for nats, way in (*cheapest[:3], cheapest[-1]):
    first, then = (np.flatnonzero(np.array(way) == s).tolist() for s in (0, 1))
    print(f"{nats:.3f} nats: {first}, then {then}")
assert cheapest[0][0] < prices["chain, neighbors apart"][3]

# %% [markdown]
# Not even the number of tokens in a step decides. The middle token of each half, then the other
# four at once, cost less than three and three; the worst leaves one token for the second step.
#
# Masked diffusion has no fixed sets: who moves is drawn, and fine steps seldom move two. Its
# distribution is found by pushing the whole distribution through the steps, over all 729 sequences
# with masks.


# %%
one_posterior = partial(paths.revealed_posterior, log_data=jnp.log(chain), mask_id=V)
posteriors = jax.jit(jax.vmap(lambda z: one_posterior(z, tokens)))(states)  # P7: [729, N, V]


@jax.jit
def kernel(rows):
    """The step from one row of a table to the next, from every state: [Z, N, S]."""
    size = steps.step_size(rows, 0)
    move = partial(steps.exact_step_velocity, step_size=size, num_states=S)
    return jax.vmap(lambda p, z: steps.step_probs(move(p, z), z))(posteriors, states)


def final_probs(table, start=-1):
    """What the sampler on a table draws, by pushing its distribution from one state: [729]."""
    p = np.eye(len(states))[start]
    for rows in pairwise(np.asarray(table)):
        p = exact.push_forward(p, np.asarray(kernel(np.stack(rows))))
    return p


# %%
goal = exact.embed(chain, V, S, N)
by_steps = exact.kl(goal, final_probs(schedules.blocks(combs[3])))
gap = abs(by_steps - prices["chain, neighbors apart"][3])
print(f"Q6 again, evens then odds, by pushing the distribution through the steps: {gap:.0e}")
assert gap < 1e-13


def diffused(schedule, num_steps):
    """KL(q ‖ masked diffusion in so many steps), nats."""
    table = np.asarray(schedules.masked(schedule, 96, N))
    return exact.kl(goal, final_probs(table[:: 96 // num_steps]))


num_steps = np.array([1, 2, 3, 6, 12, 24, 48, 96])
named_schedules = {"linear": schedules.linear(), "cosine": schedules.cosine()}
diffusion = {
    label: [diffused(schedule, n) for n in num_steps] for label, schedule in named_schedules.items()
}
print("steps  " + "".join(f"{n:8d}" for n in num_steps))
for label, row in diffusion.items():
    print(f"{label}" + "".join(f"{p:8.4f}" for p in row), "nats")
    print(f"       96 steps cost {row[-2] / row[-1]:.2f} times less than 48")
    assert 3.5 < row[-2] / row[-1] < 4.5
assert np.all(np.array(diffusion["linear"])[1:] < np.array(diffusion["cosine"])[1:])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
for (label, row), style in zip(prices.items(), ("o-", "s--", "^:"), strict=True):
    left.plot(list(row), list(row.values()), style, label=label)
left.set(xlabel="tokens at once", ylabel="KL(q ‖ sampler) in nats", xticks=[1, 2, 3, 6])
left.legend()
for (label, row), style in zip(list(prices.items())[:2], ("o-", "s--"), strict=True):
    right.plot([N / size for size in row], list(row.values()), style, label=label)
for (label, row), style in zip(diffusion.items(), ("v-.", "D:"), strict=True):
    right.plot(num_steps, row, style, label=f"chain, masked, {label}")
right.set(xlabel="number of steps", xscale="log", yscale="log", ylim=(5e-5, 3))
right.set_xticks(num_steps, num_steps)
right.minorticks_off()
right.legend()
plt.show()

# %% [markdown]
# Right: costs that are zero, those of six steps with fixed sets, fall off the logarithmic axis. To
# masked diffusion one position at a time is only a limit; on this distribution the divergence falls
# as the square of the number of steps, and the linear schedule is cheaper than the cosine one at
# every number of steps above one.
#
# ## Drawing
#
# `sampling.sample_on_table` draws by any of these tables, from a denoiser: a function that gives
# the logits of $p_{1|t}$, here a table of the exact ones. The distance of a histogram to the data
# falls like $1/\sqrt n$ for tables that move one token at a time (**S1**, **S2**), and stops at
# $\mathrm{TV}(q,q_{\text{parallel}})$ for those that do not. A table is an array, and rows of ones
# move nothing: padded to one length, five samplers are one `jax.vmap`.


# %%
def denoiser(logits, x_t, t):
    return logits[x_t @ S ** jnp.arange(N)[::-1]]  # one row for each of the 729 states


def draw(key, table):
    start = jnp.full(N, V)
    return sampling.sample_on_table(key, jnp.log(posteriors), denoiser, start, table, source="mask")


radix = V ** np.arange(N)[::-1]
sizes = np.array([300, 1_000, 3_000, 10_000, 30_000])
keys = jax.random.split(jax.random.key(0), sizes[-1])
padded = [np.concatenate([rows, np.ones((7 - len(rows), N))]) for rows in tables.values()]
every = jax.jit(jax.vmap(jax.vmap(draw, (0, None)), (None, 0)))(keys, jnp.array(padded))
drawn = dict(zip(tables, np.asarray(every) @ radix, strict=True))


# %%
def distances(index):
    """TV(histogram of the first n draws, q) for every n."""
    counts = [np.bincount(index[:n], minlength=len(chain)) / n for n in sizes]
    return np.array([exact.total_variation(c, chain) for c in counts])


fair = np.sqrt(chain * (1 - chain) / (2 * np.pi * sizes[:, None])).sum(axis=1)  # E TV, n fair draws
floors = {
    label: float(exact.total_variation(final_probs(table), goal)) for label, table in tables.items()
}
print(f"{'':17s} TV at n = {sizes[-1]:,}   limit, enumerated   (fair draws: {fair[-1]:.4f})")
for label, index in drawn.items():
    print(f"{label:17s} {distances(index)[-1]:16.4f} {floors[label]:19.4f}")
    assert abs(distances(index)[-1] - floors[label]) < 2 * fair[-1]

# %%
figure, axis = plt.subplots(figsize=(6.5, 4))
for (label, index), style in zip(drawn.items(), ("o-", "s--", "^-", "v--", "D:"), strict=True):
    axis.loglog(sizes, distances(index), style, label=label)
axis.loglog(sizes, fair, color="black", lw=1, label="fair draws, expected")
axis.set(xlabel="draws n", ylabel="TV(histogram, q)", ylim=(0.005, 1.0))
axis.legend(fontsize=9, loc="lower left", ncols=2)
plt.show()

# %% [markdown]
# ## A prompt
#
# A context is given: never masked, never moved (**A5**). Its column of the table is 1 from the
# start, and everything above holds given it. Let the second token be `a` and the last one `b`, and
# draw the others from right to left. The distribution at the end is $q(\cdot\mid c)$.

# %%
context = np.array([False, True, False, False, False, True])
given = jnp.array([0, 0, 0, 0, 0, 1])  # read where the context is
right_to_left = schedules.any_order(np.arange(N)[::-1])
prompted = schedules.with_context(right_to_left, jnp.array(context))
x_0 = paths.mask_source(given, jnp.array(context), mask_id=V)
agrees = np.all((np.asarray(tokens) == np.asarray(given)) | ~context, axis=1)
conditional = np.where(agrees, chain, 0.0) / chain[agrees].sum()  # q(· | c)

start = int(np.asarray(x_0) @ S ** np.arange(N)[::-1])
gap = apart(final_probs(prompted, start), exact.embed(conditional, V, S, N))
print(f"A5, the distribution after the last step against q(· | c): {gap:.0e}")
assert gap < 1e-14


def fill(key):
    return sampling.sample_infilling(
        key, jnp.log(posteriors), denoiser, given, jnp.array(context), right_to_left
    )


filled = np.asarray(jax.jit(jax.vmap(fill))(keys[:10_000])) @ radix
noise = np.sqrt(conditional * (1 - conditional) / (2 * np.pi * 10_000)).sum()
against = exact.total_variation(np.bincount(filled, minlength=len(chain)) / 10_000, conditional)
print(f"10,000 draws by sample_infilling: TV to q(· | c) {against:.4f}; fair draws {noise:.4f}")
assert agrees[filled].all()
assert against < 3 * noise

# %% [markdown]
# ## Try
#
# - Set `stay=0.95` or `stay=0.5` in `sticky`: how do the costs move? At 0.5 nothing is left to
#   pay, and the assertions that a falsifier must miss fail, rightly.
# - Cut the six positions into three sets. Is the cheapest of them one of `combs`?
# - Put `schedules.polynomial(3.0)` beside the two clocks of masked diffusion. Is there a schedule
#   that is better at 6 steps than both?
# - Draw the prompted sequence in blocks, `right_to_left = schedules.blocks(np.arange(6) // 3)`:
#   what is then missed is **Q6** given $c$.
#
# ## Next
#
# Until here there was one model. Split the data, train apart, and the velocity of the whole is a
# mixture of the parts': [3_a_flow_splits_into_experts.ipynb](3_a_flow_splits_into_experts.ipynb).
