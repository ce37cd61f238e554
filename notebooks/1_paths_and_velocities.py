# %% [markdown]
# # Paths and velocities, seen
#
# Two positions, two tokens and a mask: nine sequences in all. On a space that small a flow can be
# looked at whole. This notebook follows one story: a schedule makes a path of distributions $p_t$,
# the path makes a posterior, the posterior makes a velocity, and the velocity makes the path again.
#
# Labels: **P1**, **P3–P5**, **P7** (paths), **V1**, **V3**, **V5–V7** (velocities), **C1**
# (continuity), **Q3**, **Q5** (discrete time), **S3**, **S5** (samplers). Each is stated in
# [EQUATIONS.md](../EQUATIONS.md).
# Every number is compared with `dfm_jax.exact`: sums over all sequences in NumPy float64, which
# share no code with what they judge. About half a minute on two cores.

# %%
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from dfm_jax import exact, paths, sampling, schedules, steps, velocities

jax.config.update("jax_enable_x64", True)
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})
plt.rcParams.update({"legend.frameon": False, "figure.constrained_layout.use": True})


def apart(got, truth):
    """The largest difference."""
    return float(np.max(np.abs(np.asarray(got) - np.asarray(truth))))


# %% [markdown]
# ## The space
#
# Tokens `a` = 0 and `b` = 1; the mask, written `·`, is the state with id $V = 2$. A distribution
# over the nine sequences is a vector, listed as `exact.states` lists them. The data distribution
# $q$ lives on four of them, and its two tokens depend on each other.

# %%
N, V, S = 2, 2, 3  # positions, tokens, states of a position
tokens = jnp.array(exact.states(V, N))  # [4, 2]: aa, ab, ba, bb
states = jnp.array(exact.states(S, N))  # [9, 2]: with masks
q = jnp.array([0.40, 0.10, 0.15, 0.35])


def name(z):
    return "".join("ab·"[v] for v in z)


dict(zip(map(name, tokens.tolist()), q.tolist(), strict=True))

# %% [markdown]
# ## The schedule
#
# $\kappa_t$ is the probability that a position has arrived at its data token by time $t$ (**P3**).
# What a velocity needs of it is the rate (**V3**), in jumps per unit of time,
# $$\frac{\dot\kappa_t}{1-\kappa_t} = -\partial_t \log(1-\kappa_t).$$
# A schedule is the pair $\kappa_t$, $\log(1-\kappa_t)$, and the rate is the derivative of the
# second: no quotient of two vanishing numbers is formed. By hand, the cosine schedule
# $\kappa_t = 1-\cos(\pi t/2)$ has the rate $\frac{\pi}{2}\tan(\pi t/2)$.

# %%
times = jnp.linspace(0.0, 0.98, 99)
schedule = schedules.cosine()
by_hand = np.pi / 2 * np.tan(np.pi / 2 * np.asarray(times))
rates = jax.vmap(lambda t: schedules.rate(t, schedule))(times)
relative = apart(rates / np.maximum(by_hand, 1), by_hand / np.maximum(by_hand, 1))
assert relative < 1e-13
print(f"rate of the cosine schedule against π/2 tan(πt/2): {relative:.0e}")

# %%
family = {"linear": schedules.linear(), "t²": schedules.polynomial(2.0), "cosine": schedule}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
for (label, schedule), style in zip(family.items(), ["-", "--", "-."], strict=True):
    left.plot(times, jax.vmap(schedule.kappa)(times), style, label=label)
    right.plot(times, jax.vmap(partial(schedules.rate, schedule=schedule))(times), style)
left.set(xlabel="time t", ylabel="κ_t (share arrived)")
right.set(xlabel="time t", ylabel="rate (jumps per unit of time)", yscale="log")
left.legend()
plt.show()

# %% [markdown]
# The rate has no end at $t = 1$: whoever has not jumped yet must jump soon. The library refuses
# to state it there instead of clipping it.

# %%
try:
    schedules.rate(1.0, schedule)
except ValueError as error:
    print(error)

# %% [markdown]
# ## The conditional path
#
# Given where a sequence starts and ends, its positions move independently (**P1**), and each is at
# one of two tokens (**P3**):
# $$p_t(x\mid x_0,x_1)=\prod_i p_t^i(x^i\mid x_0,x_1),\qquad
# p_t^i(v\mid x_0,x_1)=(1-\kappa_t)\,\delta_{x_0^i}(v)+\kappa_t\,\delta_{x_1^i}(v).$$
# `mixture_path` is written for one pair and one time. `jax.vmap` is the batch.

# %%
masks, end = jnp.array([V, V]), jnp.array([0, 1])  # from ·· to ab
token_path = paths.mixture_path(masks, end, schedule.kappa(0.5), num_states=S)  # [N, S]
conditional = jnp.exp(jax.vmap(lambda z: paths.product_log_prob(z, token_path))(states))

one_pair = np.zeros((9, 4))
one_pair[8, 1] = 1.0  # all mass on (··, ab)
kappa = np.full(N, 1 - np.cos(np.pi / 4))
truth = exact.marginal_path(one_pair, exact.mixture_token_path(kappa, V, S))
assert apart(conditional, truth) < 1e-14
for z, p in zip(states.tolist(), conditional, strict=True):
    if p > 0:
        print(f"p_½({name(z)} | ··, ab) = {p:.4f}")
print(f"against enumeration: {apart(conditional, truth):.0e}")

# %% [markdown]
# ## The marginal path
#
# Draw the pair from a coupling $\pi$ and forget it (**P4**):
# $p_t(x)=\sum_{x_0,x_1}p_t(x\mid x_0,x_1)\,\pi(x_0,x_1)$. Two couplings are used below. In the
# first all sequences start as masks; in the second the source is uniform over the four data
# sequences, independent of where they end, and no mask is needed.

# %%
masked = (jnp.full((4, N), V), tokens, jnp.log(q))  # the pairs x_0, x_1 and log π
ends = jnp.tile(tokens, (4, 1))
uniform = (jnp.repeat(tokens, 4, axis=0), ends, jnp.log(jnp.tile(q, 4) / 4))


def token_paths(t, pairs, num_states):
    """One [N, S] for each pair."""
    one = partial(paths.mixture_path, kappa_t=schedule.kappa(t), num_states=num_states)
    return jax.vmap(one)(*pairs[:2])


@partial(jax.jit, static_argnames="num_states")
def probs(t, pairs, num_states=S):
    """p_t over all sequences."""
    here = token_paths(t, pairs, num_states)
    every = jnp.array(exact.states(num_states, N))
    return jnp.exp(jax.vmap(lambda z: paths.marginal_log_prob(z, here, pairs[2]))(every))


# %%
COUPLINGS = {
    S: exact.FactoredCoupling(np.asarray(q), np.eye(S)[[V, V]], np.zeros(N, bool)),
    V: np.full((4, 1), 0.25) * np.asarray(q),
}


def counted(t, num_states):
    """p_t by enumeration; S = 3 is the mask source, S = 2 the uniform one."""
    w = exact.mixture_token_path(np.full(N, 1 - np.cos(np.pi * t / 2)), V, num_states)
    return exact.marginal_path(COUPLINGS[num_states], w)


times = np.linspace(0.0, 1.0, 101)
token_probs = jax.vmap(lambda t: probs(t, masked))(times)  # [times, 9]
probs_uniform = jax.vmap(lambda t: probs(t, uniform, V))(times)  # [times, 4]
for got, num_states in ((token_probs, S), (probs_uniform, V)):
    gap = apart(got, [counted(t, num_states) for t in times])
    assert gap < 1e-14
    print(f"{num_states} states a position: p_t at {len(times)} times, off by {gap:.0e}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=[1, 1])
for axis, values, every in ((axes[0], token_probs, states), (axes[1], probs_uniform, tokens)):
    image = axis.imshow(
        values.T,
        aspect="auto",
        interpolation="nearest",
        extent=(0, 1, len(every), 0),
        vmin=0,
        vmax=0.5,
    )
    axis.set_yticks(np.arange(len(every)) + 0.5, map(name, every.tolist()), family="monospace")
    axis.set(xlabel="time t", ylabel="sequence x")
axes[0].set_title("all masks at t = 0 (there p(··) = 1)", fontsize=10)
axes[1].set_title("uniform at t = 0", fontsize=10)
figure.colorbar(image, ax=axes, label="p_t(x)", extend="max")
plt.show()

# %% [markdown]
# On the left mass leaves `··`, passes through the half-revealed sequences and ends in $q$. On the
# right every sequence is possible at every time; only the masses change.
#
# ## The posterior, and the velocity from it
#
# Seen from a state $z$ at time $t$, the data tokens have a posterior (**P5**), and it is all that
# the velocity needs (**V5**):
# $$u_t^i(v,z)=\frac{\dot\kappa_t}{1-\kappa_t}\big[p_{1|t}^i(v\mid z)-\delta_{z^i}(v)\big].$$
# With masks as the source the posterior is free of time: it is $q$ given the revealed tokens
# (**P7**). With a uniform source it is not, because a token on display may not be the last word.


# %%
@partial(jax.jit, static_argnames="num_states")
def posterior(t, pairs, num_states=S):
    """p_{1|t} at every state: [Z, N, V]."""
    here = token_paths(t, pairs, num_states)
    every = jnp.array(exact.states(num_states, N))
    weights = jax.vmap(lambda z: paths.pair_posterior(z, here, pairs[2]))(every)
    return jax.vmap(lambda r: paths.token_posterior(r, pairs[1], num_tokens=V))(weights)


@partial(jax.jit, static_argnames="num_states")
def velocity(t, pairs, num_states=S):
    """u_t at every state: [Z, N, S]."""
    every = jnp.array(exact.states(num_states, N))
    one = partial(velocities.posterior_to_velocity, t=t, schedule=schedule, num_states=num_states)
    return jax.vmap(lambda p, z: one(p, z))(posterior(t, pairs, num_states), every)


# %%
half = exact.mixture_token_path(kappa, V, S)  # t = ½
now = posterior(0.5, masked)
revealed = jax.vmap(lambda z: paths.revealed_posterior(z, tokens, jnp.log(q), mask_id=V))(states)
gap = apart(now, exact.posteriors(COUPLINGS[S], half)[0])
gap_revealed = apart(now, revealed)
moved = apart(posterior(0.1, masked), posterior(0.9, masked))
moved_uniform = apart(posterior(0.1, uniform, V), posterior(0.9, uniform, V))
print(f"P5  posterior against enumeration               {gap:.0e}")
print(f"P7  posterior against q given revealed tokens   {gap_revealed:.0e}")
print(f"P7  it moves between t = 0.1 and 0.9 by         {moved:.0e}")
print(f"    with a uniform source, by                   {moved_uniform:.2f}")
assert max(gap, gap_revealed, moved) < 1e-14
assert moved_uniform > 0.1

# %% [markdown]
# A velocity is a rate (**V1**): off the current token it is not negative, and it sums to 0. Run
# backwards it is none, which shows that the check can fail.

# %%
u = velocity(0.5, masked)
violation = jax.vmap(velocities.rate_violation)
forward, reversed_ = float(violation(u, states).max()), float(violation(-u, states).max())
print(f"V1 violated by {forward:.0e}; run backwards, by {reversed_:.2f}")
assert forward < 1e-14 < reversed_

# %% [markdown]
# ## The field
#
# The mask in the middle, `a` on one side and `b` on the other: the nine sequences form a square,
# and a velocity moves along its rows and columns, one position at a time. A disc's area
# grows with $p_t(z)$, an arrow's width is the flux $p_t(z)\,u_t^i(v,z)$, in probability per unit of
# time.

# %%
PLACE = np.array([-1.0, 1.0, 0.0])  # of a, b and the mask


def arrows(axis, p, u, every):
    """The flux from every state, one position at a time."""
    for z, i, v in np.argwhere(p[:, None, None] * np.maximum(u, 0) > 1e-3):
        target = every[z].copy()
        target[i] = v
        width = 5 * p[z] * u[z, i, v]
        style = {"arrowstyle": "-|>", "shrinkA": 16, "shrinkB": 16, "mutation_scale": 7 + width}
        style.update(lw=width, color="tab:blue", connectionstyle="arc3,rad=0.12")
        axis.annotate("", PLACE[target], PLACE[every[z]], arrowprops=style)


def field(axis, t, p, u, every):
    """Discs for masses, arrows for fluxes, names of sequences."""
    arrows(axis, p, u, every)
    axis.scatter(*PLACE[every].T, s=150 + 1500 * p, c="tab:orange", alpha=0.6, lw=0, zorder=2)
    for z, label in zip(every, map(name, every), strict=True):
        axis.text(*PLACE[z], label, ha="center", va="center", family="monospace", zorder=3)
    axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
    axis.set_title(f"t = {t}", fontsize=10, y=0.95)
    axis.spines[:].set_visible(False)


# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.5))
for axis, t in zip(axes, (0.3, 0.6, 0.9), strict=True):
    field(
        axis, t, np.asarray(probs(t, masked)), np.asarray(velocity(t, masked)), np.asarray(states)
    )
plt.show()

# %% [markdown]
# Everything streams outwards from `··`. At a corner nothing moves: revealed tokens stay. On each
# side of the square the two arrows split as $q$ does given the token already revealed: this is
# how the dependence between the two tokens gets into the data, though each step moves one token.
#
# With the uniform source there are four sequences, and mass flows both ways between neighbors.
# More of it flows toward what is likely.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.5))
for axis, t in zip(axes, (0.1, 0.5, 0.9), strict=True):
    p, u = probs(t, uniform, V), velocity(t, uniform, V)
    field(axis, t, np.asarray(p), np.asarray(u), np.asarray(tokens))
plt.show()

# %% [markdown]
# ## Does the velocity make the path?
#
# The continuity equation (**C1**), with divergence = outflow − inflow:
# $$\partial_t p_t(x)+\mathrm{div}_x(p_t u_t)=0.$$
# The slope $\partial_t p_t$ comes from enumeration (a complex step, exact to rounding), the
# divergence from `velocities.divergence`. The falsifier forgets $1/(1-\kappa_t)$: its rate is
# $\dot\kappa_t$ alone.


# %%
def slope(t, num_states):
    """∂_t p_t by enumeration."""
    path = partial(exact.mixture_token_path, num_tokens=V, num_states=num_states)
    speed = np.pi / 2 * np.sin(np.pi * t / 2) * (path(np.ones(N)) - path(np.zeros(N)))
    here = path(np.full(N, 1 - np.cos(np.pi * t / 2)))
    return exact.path_derivative(COUPLINGS[num_states], here, speed)


@partial(jax.jit, static_argnames="num_states")
def flow(t, pairs, num_states):
    """div(p_t u_t) over all sequences."""
    every = jnp.array(exact.states(num_states, N))
    return velocities.divergence(probs(t, pairs, num_states), velocity(t, pairs, num_states), every)


def unbalanced(factor, pairs, num_states):
    """The largest |∂_t p + factor · div(p u)| over states, at the times `inside`."""
    change = np.stack([slope(t, num_states) for t in inside])
    outflow = jax.vmap(lambda t: flow(t, pairs, num_states))(inside)
    return np.abs(change + factor[:, None] * outflow).max(axis=1)


inside = np.linspace(0.02, 0.98, 49)
one, left_over = np.ones_like(inside), np.cos(np.pi * inside / 2)  # left_over = 1 − κ_t
residuals = {}
for source, space in (("masks", (masked, S)), ("uniform", (uniform, V))):
    residuals[source] = unbalanced(one, *space), unbalanced(left_over, *space)
    right, wrong = (float(r.max()) for r in residuals[source])
    print(f"source {source:8s} C1 off by {right:.0e}; without 1/(1 − κ), by {wrong:.2f}")
    assert right < 1e-13 < wrong

# %% [markdown]
# Where does the wrong rate lead? For the mask source the answer is in closed form. There
# $u_t=\frac{\dot\kappa_t}{1-\kappa_t}\,g$ with a field $g=p_{1|t}-\delta$ that does not depend on
# time (**P7**), so following the velocity to time $t$ is following $g$ for the duration
# $\int_0^t\frac{\dot\kappa}{1-\kappa}=-\log(1-\kappa_t)$. `exact.evolve` follows a constant rate
# to rounding, by uniformization. The wrong rate follows $g$ for the duration $\kappa_t$ only, and
# at the end a position is still a mask with probability $e^{-1}$.

# %%
g = np.asarray(velocity(0.5, masked)) / float(schedules.rate(0.5, schedule))
start = np.asarray(probs(0.0, masked))
right_way = np.stack([exact.evolve(start, g, -np.log(np.cos(np.pi * t / 2))) for t in inside])
wrong_way = np.stack([exact.evolve(start, g, 1 - np.cos(np.pi * t / 2)) for t in inside])
on_path = apart(right_way, jax.vmap(lambda t: probs(t, masked))(inside))
stuck = float(exact.evolve(start, g, 1.0)[8])
print(f"u_t followed from t = 0: off p_t by {on_path:.0e}")
print(
    f"κ̇ alone: at t = 1 both tokens are masks with probability {stuck:.4f}; e⁻² = {np.exp(-2):.4f}"
)
assert on_path < 1e-13
assert abs(stuck - np.exp(-2)) < 1e-13

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
num_masks = np.asarray(states == V).sum(axis=1)
for count, color in zip((2, 1, 0), plt.cm.viridis([0.0, 0.45, 0.8]), strict=True):
    left.plot(inside, right_way[:, num_masks == count].sum(axis=1), color=color, label=count)
    left.plot(inside, wrong_way[:, num_masks == count].sum(axis=1), "--", color=color)
left.set(xlabel="time t", ylabel="probability", title="")
left.legend(title="masks left", loc="center left")
for (source, (good, bad)), style in zip(residuals.items(), ("-", ":"), strict=True):
    right.semilogy(inside, bad, style, color="tab:orange", label=f"κ̇, {source}")
    right.semilogy(inside, good, style, color="tab:blue", label=f"κ̇/(1 − κ), {source}")
right.set(xlabel="time t", ylabel="largest |∂p + div(p u)|", ylim=(1e-18, 1e2))
right.legend(loc="center", fontsize=9, ncols=2)
plt.show()

# %% [markdown]
# Solid: the path, which is also where $u_t$ leads. Dashed: where $\dot\kappa_t$ alone leads; it
# never gets rid of the masks.
#
# ## Sampling
#
# A sampler takes one sequence, one key and a denoiser, a function that gives the logits of
# $p_{1|t}$; here it is the exact one. `sample_euler` steps by $\delta+h\,u_t$ (**S3**).

# %%
num_draws, num_steps = 20_000, 32


def denoiser(log_q, x_t, t):
    return jnp.log(paths.revealed_posterior(x_t, tokens, log_q, mask_id=V))


def draw(key):  # from t = 0 to t = ½
    grid = jnp.linspace(0.0, 0.5, num_steps + 1)
    return sampling.sample_euler(key, jnp.log(q), denoiser, masks, schedule, grid, source="mask")


drawn = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), num_draws))
histogram = np.bincount(np.asarray(drawn) @ [S, 1], minlength=9) / num_draws
p_half = counted(0.5, S)
noise = np.sqrt(p_half * (1 - p_half) / (2 * np.pi * num_draws)).sum()  # E TV of a fair histogram
distance = exact.total_variation(histogram, p_half)
print(f"TV(histogram, p_½) = {distance:.4f}; {num_draws:,} fair draws would give about {noise:.4f}")
assert distance < 3 * noise

# %% [markdown]
# On nine sequences there is no need to draw. `steps.push_forward` (**Q5**) moves the whole
# distribution through a step, and what is left is the error of the sampler itself. Two samplers:
# Euler's step $h\,u_t$, and the finite step $\lambda=(\kappa_{t+h}-\kappa_t)/(1-\kappa_t)$ in the
# place of $h\,\dot\kappa_t/(1-\kappa_t)$ (**Q3**), which gets each token's distribution right, but
# still moves both tokens in one step as if they were independent (**Q6**; the next notebook costs
# that).


# %%
def euler(t, then):
    return (then - t) * schedules.rate(t, schedule)


def finite(t, then):
    return (schedule.kappa(then) - schedule.kappa(t)) / (1 - schedule.kappa(t))


@partial(jax.jit, static_argnames="size")
def stepped(p, t, then, size):
    """The distribution after one step from t."""
    velocity = size(t, then) * jnp.array(g)
    kernel = jax.vmap(steps.step_probs)(velocity, states)
    return steps.push_forward(p, kernel, states)


def arrive(num_steps, size):
    """The distribution at t = ½ after so many steps from t = 0."""
    p = probs(0.0, masked)
    for t, then in pairwise(np.linspace(0.0, 0.5, num_steps + 1)):
        p = stepped(p, t, then, size)
    return np.asarray(p)


# %%
counts = 2 ** np.arange(1, 8)
error = {
    size.__name__: [exact.total_variation(arrive(n, size), p_half) for n in counts]
    for size in (euler, finite)
}
for label, values in error.items():
    ratio = values[-2] / values[-1]
    print(
        f"{label:7s} TV at {counts[-1]} steps {values[-1]:.1e}, {ratio:.2f} times less than at half"
    )
    assert 1.9 < ratio < 2.1

# %% [markdown]
# ## A corrector
#
# The same path has a velocity that looks back (**V6**),
# $\check u_t^i(v,z)=\frac{\dot\kappa_t}{\kappa_t}[\delta_{z^i}(v)-p_{0|t}^i(v\mid z)]$.
# Steps forward and back in equal measure, $\bar u=\beta(u-\check u)$, leave $p_t$ where it is
# (**V7**): $\mathrm{div}(p_t\bar u)=0$ at frozen $t$. Here every other distribution is drawn to
# $p_t$, so a corrector can mend what coarse steps have spoilt (**S5**).

# %%
t = 0.5
source = jnp.eye(S)[masks]  # all mass on the mask
origin = jax.vmap(
    lambda p, z: paths.source_posterior(p, source, z, schedule.kappa(t)),
)(posterior(t, masked), states)
back = jax.vmap(lambda p, z: velocities.backward_velocity(p, z, t, schedule))(origin, states)
forth = velocity(t, masked)
both = partial(velocities.corrected_velocity, alpha=1.0, beta=1.0)
corrector = np.asarray(jax.vmap(both)(forth, back))
still = apart(velocities.divergence(probs(t, masked), corrector, states), 0)
drift = apart(velocities.divergence(probs(t, masked), forth, states), 0)
print(f"largest |div(p_t ū)| = {still:.0e}; of u alone {drift:.2f}")
assert still < 1e-14 < drift

# %%
durations = np.linspace(0.0, 3.0, 31)
spoilt = arrive(2, euler)
mended = [exact.total_variation(exact.evolve(spoilt, corrector, s), p_half) for s in durations]
print(f"TV to p_½: {mended[0]:.3f} after two Euler steps, {mended[-1]:.1e} after the corrector")
assert mended[-1] < mended[0] / 50

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3))
axes[0].bar(np.arange(9) - 0.2, p_half, 0.4, label="p_½")
axes[0].bar(np.arange(9) + 0.2, histogram, 0.4, label=f"{num_draws:,} draws")
axes[0].set_xticks(range(9), map(name, states.tolist()), family="monospace")
axes[0].set(xlabel="sequence", ylabel="probability")
axes[0].legend(loc="upper left")
for (label, values), style in zip(error.items(), ("o-", "s--"), strict=True):
    axes[1].loglog(counts, values, style, label=label)
axes[1].set(xlabel="steps to t = ½", ylabel="TV of the sampler to p_½")
axes[1].legend()
axes[2].semilogy(durations, mended)
axes[2].set(xlabel="duration of the corrector at t = ½", ylabel="TV of the distribution to p_½")
plt.show()

# %% [markdown]
# ## Try
#
# Cell by cell: some of these stop at an assertion, which is the answer.
#
# - Set `schedule = schedules.polynomial(2.0)`: which cells know that the schedule was a cosine?
# - Give `q` a zero, say `[0.5, 0.0, 0.15, 0.35]`. Off its support the posterior is NaN, on
#   purpose: which cells need a `where`, and which leave out what has probability 0 themselves?
# - Let the grid in `draw` end at 1 and compare with `counted(1.0, S)`: the last step is then drawn
#   from $p_{1|t}$ (**S4**).
# - Set `alpha=2.0` in the corrector. By **V7** that velocity generates $p_t$ again: the assertion
#   fails, and its divergence is that of `forth`.
#
# ## Next
#
# A schedule may differ between positions. Take one that jumps from 0 to 1, position by position,
# and the flow is left-to-right generation:
# [2_autoregression_is_a_flow.ipynb](2_autoregression_is_a_flow.ipynb).
