# %% [markdown]
# # A flow splits into experts
#
# Cut the data into parts and give each part a flow of its own. Then the velocity of the whole is
# the sum of the parts' velocities, weighted by how likely each part is at the state one is in:
#
# $$u_t(x, z) = \sum_k r_k(z, t)\, u_t^k(x, z), \qquad
#   r_k(z, t) = \frac{w_k\, p_t^k(z)}{p_t(z)} \qquad \textbf{(D4)}$$
#
# This notebook walks through the proof one line at a time, **D1 → D2 → D3 → V4 and the tower
# rule → D4**, and then through what follows from it: **D5, D6, D8, D9, D13**. At each line stands
# the library's call, then the same thing enumerated by `dfm_jax.exact` from the raw joint
# distribution, then the residual between the two. `exact` is NumPy and shares no code with what it
# judges.
#
# A residual that is always small proves little. So there is a switch, `FALSIFIER`, that breaks one
# hypothesis; the same cells then print a large residual, and assert that it is large.
# It takes about 40 seconds of processor time, most of it in the last cell.

# %%
import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from dfm_jax import exact, mixture, objectives, paths, schedules, steps, theory, velocities

plt.rcParams["figure.dpi"] = 80

# %%
SWITCHES = (None, "static gate", "prior dropped", "one part on another schedule")
FALSIFIER = SWITCHES[0]  # try SWITCHES[1], [2] or [3], and run all cells again

# %% [markdown]
# ## A space small enough to list
#
# Two tokens, a mask (state 2, drawn as `·`), three positions: 27 states, 8 data sequences. Three
# parts of mass 0.2, 0.3 and 0.5, each with a distribution $q_k$ of its own. The source depends on
# the data ($x_0$ is drawn given $x_1$), and each position has its own schedule, $\kappa_t^i =
# t^{a_i}$: nothing is independent unless the theorem says so.

# %%
V, N, K = 2, 3, 3
S = V + 1
z, x = exact.states(S, N), exact.states(V, N)  # all states [27, 3], all data [8, 3]
rng = np.random.default_rng(3)
w = np.array([0.2, 0.3, 0.5])
q_parts = rng.dirichlet(np.full(V**N, 0.4), size=K)  # q_k, [K, 8]
source = rng.dirichlet(np.full(S**N, 0.3), size=V**N).T  # π(x_0 | x_1), [27, 8]
pi_parts = q_parts[:, None, :] * source  # π_k(x_0, x_1), [K, 27, 8]
pi = np.tensordot(w, pi_parts, axes=1)  # the whole: π = Σ_k w_k π_k
powers = np.array([1.0, 1.5, 2.0])  # κ_t^i = t^{a_i}
np.round(q_parts, 3)


# %% [markdown]
# How a residual is judged. Each step of the proof leans on some hypotheses and not on others:
# `LEANS_ON` says which. A step must hold to $10^{-12}$, unless the switch breaks a hypothesis that
# it leans on: then it must fail by $10^{-3}$ at least.

# %%
GATE, PRIOR, CLOCK = SWITCHES[1:]
LEANS_ON = {
    "D1": {PRIOR},
    "D2": {PRIOR, CLOCK},
    "D3": {GATE, PRIOR, CLOCK},
    "tower": {GATE, PRIOR, CLOCK},
    "D4": {GATE, PRIOR, CLOCK},
    "D4, a finite step": {GATE, PRIOR, CLOCK},
    "D5": {GATE, PRIOR, CLOCK},
    "D6": {GATE, PRIOR, CLOCK},
    "D13": {GATE, PRIOR, CLOCK},
}


def gap(left, right):
    """The largest |left − right|."""
    return float(np.max(np.abs(np.asarray(left) - np.asarray(right))))


def judge(label, residual, broken=None):
    """Print a residual; assert that it vanishes, or that it does not where it must not."""
    fails = broken in LEANS_ON.get(label, ())
    assert (residual >= 1e-3) if fails else (residual <= 1e-12), (label, broken, residual)
    print(f"{label}: {residual:.1e}" + (f"  with {broken}" if broken else ""))


# %% [markdown]
# ## D1. The data is a mixture
#
# $\pi = \sum_k w_k \pi_k$, so $q = \sum_k w_k q_k$. Any split will do, hard or soft.


# %%
def log_masses(broken):
    """log w_k; or the prior dropped, all parts alike."""
    return jnp.log(w) if broken != PRIOR else jnp.full(K, -jnp.log(K))


def d1(broken):
    log_q = mixture.mix_log_probs(log_masses(broken), jnp.log(q_parts))
    return gap(jnp.exp(log_q), exact.data_probs(pi))


judge("D1", d1(FALSIFIER), FALSIFIER)

# %% [markdown]
# ## D2. The path is a mixture
#
# $p_t = \sum_k w_k p_t^k$, if all parts walk the same conditional path $p_t(\cdot \mid x_0, x_1)$.
# Marginalizing over pairs (**P4**) is linear in $\pi$, and that is the whole proof.
#
# One function makes everything that expert $k$ knows, from its own $\pi_k$ alone: its path $p_t^k$,
# its posterior over pairs (**P5**), its velocity (**V4** over **V3**).

# %%
schedule = schedules.polynomial(powers)
x_0, x_1 = np.repeat(z, V**N, axis=0), np.tile(x, (S**N, 1))  # all 216 pairs


def jump(b, state, t):
    """V3: u_t^i(v, z | x_0, x_1) = κ̇/(1 − κ) [δ_{x_1^i}(v) − δ_{z^i}(v)]."""
    return velocities.mixture_velocity(b, state, t, schedule, num_states=S)


def expert(log_pi, t):
    """log p_t^k(z) [Z], P(x_0, x_1 | z, k) [Z, P] and u_t^k(v, z) [Z, N, S] of one part alone."""
    kappa = schedule.kappa(t)
    walk = jax.vmap(lambda a, b: paths.mixture_path(a, b, kappa, num_states=S))(x_0, x_1)
    log_p = jax.vmap(paths.marginal_log_prob, (0, None, None))(z, walk, log_pi)  # P4
    pairs = jax.vmap(paths.pair_posterior, (0, None, None))(z, walk, log_pi)  # P5
    jumps = jax.vmap(jax.vmap(jump, (0, None, None)), (None, 0, None))(x_1, z, t)  # V3
    return log_p, pairs, jax.vmap(mixture.mix)(pairs, jumps)  # V4


all_experts = jax.jit(jax.vmap(expert))


def named_schedules(t, broken):
    """The time of every part; or the first part on another schedule, still at t²."""
    return jnp.array([t**2 if broken == CLOCK else t, t, t])


def parts_at(t, broken):
    """Paths, posteriors over pairs and velocities of all parts."""
    return all_experts(jnp.log(pi_parts).reshape(K, -1), named_schedules(t, broken))


# %% [markdown]
# And the truth: `exact` knows the whole $\pi$ and nothing of parts.


# %%
def token_path(t):
    """W[i, a, b, v] = p_t^i(v | x_0^i = a, x_1^i = b)."""
    return exact.mixture_token_path(t**powers, V, S)


def d2(broken, t=0.4):
    log_p = mixture.mix_log_probs(log_masses(broken), parts_at(t, broken)[0])
    return gap(jnp.exp(log_p), exact.marginal_path(pi, token_path(t)))


judge("D2", d2(FALSIFIER), FALSIFIER)

# %% [markdown]
# ## D3. Which part does a state come from?
#
# $r_k(z, t) = w_k\, p_t^k(z) / p_t(z)$: Bayes' rule on the two lines above. At $t = 0$ it is
# $P(k \mid x_0)$.


# %%
posterior_gate = jax.jit(jax.vmap(mixture.expert_posterior, (None, 1)))  # at every state


def gate_at(t, broken):
    """r_k(z, t) at every state: [Z, K]; or the masses, if the gate does not look."""
    if broken == GATE:
        return jnp.broadcast_to(w, (len(z), K))
    return posterior_gate(log_masses(broken), parts_at(t, broken)[0])


def d3(broken, t=0.4):
    part_paths = np.stack([exact.marginal_path(p, token_path(t)) for p in pi_parts])
    return gap(gate_at(t, broken), exact.expert_posterior(w, part_paths)[0])


judge("D3", d3(FALSIFIER), FALSIFIER)

# %% [markdown]
# The gate over time, at every state, sorted by the number of masks. At the left edge the state is
# the source, and toward the right edge it is the data. The row of three masks does not change: no
# data token is a mask, so nothing has moved, and the gate knows what $x_0$ told it.

# %%
times = np.linspace(0.0, 0.98, 50)
r = np.stack([gate_at(t, None) for t in times])  # [T, Z, K]
assert gap(r[:, -1], r[0, -1]) <= 1e-12  # the state of three masks
rows = np.argsort((z == V).sum(axis=1), kind="stable")
names = ["".join("01·"[v] for v in state) for state in z[rows]]
figure, axes = plt.subplots(1, K, figsize=(9, 5), sharey=True, layout="constrained")
for k, ax in enumerate(axes):
    image = ax.pcolormesh(times, np.arange(len(z)), r[:, rows, k].T, vmin=0, vmax=1)
    ax.set(xlabel="time t (source to data)", title=f"part {k}, mass {w[k]}")
    ax.invert_yaxis()
axes[0].set_yticks(np.arange(len(z)), names, family="monospace", fontsize=8)
axes[0].set_ylabel("state z")
figure.colorbar(image, ax=axes, label="$r_k(z, t)$", pad=0.01)
plt.show()

# %% [markdown]
# ## V4 and the tower rule
#
# The velocity of the whole is a posterior mean over pairs,
# $u_t(\cdot, z) = \mathbb E[\,u_t(\cdot, z \mid X_0, X_1) \mid X_t = z\,]$ (**V4**). The tower rule
# takes the mean part by part: $\mathbb E[\,\cdot \mid z\,] = \sum_k r_k(z, t)\,
# \mathbb E[\,\cdot \mid z, k\,]$. Written for the posterior over pairs themselves,
#
# $$P(x_0, x_1 \mid z) = \sum_k r_k(z, t)\, P(x_0, x_1 \mid z, k).$$


# %%
def token_pairs(probs):
    """P(x_0^i = a, x_1^i = b | z) from the posterior over pairs: [N, S, V]."""
    code = x_0 * V + x_1
    return paths.token_posterior(probs, code, num_tokens=S * V).reshape(N, S, V)


mix_posteriors = jax.jit(jax.vmap(mixture.mix_probs, (0, 1)))  # at every state
all_token_pairs = jax.jit(jax.vmap(token_pairs))


def tower(broken, t=0.4):
    pairs = mix_posteriors(gate_at(t, broken), parts_at(t, broken)[1])
    return gap(all_token_pairs(pairs), exact.pair_posterior(pi, token_path(t))[0])


judge("tower", tower(FALSIFIER), FALSIFIER)

# %% [markdown]
# ## D4. The velocity is the posterior-weighted sum
#
# The mean of the conditional velocity under that posterior. The truth is V4 of the whole, from the
# raw joint distribution, with $\dot\kappa/(1 - \kappa)$ differentiated by hand.


# %%
def true_velocity(t):
    """V4 by enumeration: [Z, N, S]."""
    rate = powers * t ** (powers - 1) / (1 - t**powers)
    eye = np.eye(S)
    move = eye[None, :V, None, :] - eye[None, None, :, :]  # δ_b(v) − δ_s(v) at [·, b, s, v]
    moves = rate[:, None, None, None, None] * move
    whole = exact.pair_posterior(pi, token_path(t))[0]
    return exact.marginal_velocity(whole, np.broadcast_to(moves, (N, S, V, S, S)))


mix_velocities = jax.jit(jax.vmap(mixture.mix, (0, 1)))  # at every state


def d4(broken, t=0.4):
    mixed = mix_velocities(gate_at(t, broken), parts_at(t, broken)[2])
    return gap(mixed, true_velocity(t))


judge("D4", d4(FALSIFIER), FALSIFIER)

# %% [markdown]
# The same in discrete time, all three positions moving at once: the finite step is
# $u_t^i = \lambda_t^i\,[\,p_{1|t}^i(\cdot \mid z) - \delta_{z^i}]$ with
# $\lambda = (\kappa_{t+1} - \kappa_t)/(1 - \kappa_t)$ (**Q3**). The theorem does not ask that the
# step be exact for the joint distribution (it is not, that is **Q6**), only that it is linear in
# the posterior. Here the step goes from $\kappa_t$ half-way to 1.


# %%
def finite_step(posterior, state, t):
    """Q3's velocity from κ_t to the middle of κ_t and 1."""
    now = schedule.kappa(t)
    step = steps.step_size(jnp.stack([now, (now + 1) / 2]), 0)
    return steps.exact_step_velocity(posterior, state, step, num_states=S)


def posteriors_of(pairs):
    """p_{1|t} from a posterior over pairs: [N, V]."""
    return paths.token_posterior(pairs, x_1, num_tokens=V)


all_posteriors = jax.jit(jax.vmap(jax.vmap(posteriors_of)))  # [K, Z, N, V]
all_steps = jax.jit(jax.vmap(jax.vmap(finite_step, (0, 0, None)), (0, None, None)))


def d4_step(broken, t=0.4):
    own = all_posteriors(parts_at(t, broken)[1])
    mixed = mix_velocities(gate_at(t, broken), all_steps(own, z, t))
    data = np.pad(exact.posteriors(pi, token_path(t))[0], ((0, 0), (0, 0), (0, S - V)))
    return gap(mixed, 0.5 * (data - np.eye(S)[z]))  # λ = ((κ + 1)/2 − κ)/(1 − κ) = 1/2


judge("D4, a finite step", d4_step(FALSIFIER), FALSIFIER)

# %% [markdown]
# ## D5. Denoising posteriors mix alike
#
# $p_{1|t}^i(v \mid z) = \sum_k r_k(z, t)\, p_{1|t}^{k,i}(v \mid z)$: what networks predict, so this
# is the line that an implementation runs.


# %%
def d5(broken, t=0.4):
    own = all_posteriors(parts_at(t, broken)[1])
    mixed = mix_posteriors(gate_at(t, broken), own)
    return gap(mixed, exact.posteriors(pi, token_path(t))[0])


judge("D5", d5(FALSIFIER), FALSIFIER)

# %% [markdown]
# ## D6. So do next tokens
#
# Left to right is one schedule of this flow (notebook 2), and there D5 reads
#
# $$q(v \mid x^{\le t}) = \sum_k r_k(x^{\le t})\, q_k(v \mid x^{\le t}).$$
#
# The gate runs along the sequence on the experts' own likelihoods (**D7**, notebook 4). Another
# schedule means here that the first part is one row of the table behind: it answers for the token
# before.


# %%
def next_tokens(broken):
    """q_k(v | x^{<t}), [K, X, N, V]; or the first part one row late."""
    probs = np.stack([exact.conditionals(q, V, N)[0] for q in q_parts])
    if broken == CLOCK:
        probs[0] = np.roll(probs[0], 1, axis=1)
    return probs


gate_of_sequences = jax.jit(jax.vmap(mixture.bayes_gate, (None, 0)))
mix_along = jax.jit(jax.vmap(jax.vmap(mixture.mix_probs, (0, 1)), (0, 1)))  # [X, N, V]


def prefix_gate(probs, broken):
    """r_k(x^{<t}): [X, N, K]."""
    seen = np.take_along_axis(probs, x[None, :, :, None], axis=-1)[..., 0]  # [K, X, N]
    rows = jnp.moveaxis(jnp.log(seen), 0, -1)
    weights = jnp.exp(gate_of_sequences(log_masses(broken), rows).log_weights)[:, :-1]
    return jnp.broadcast_to(w, weights.shape) if broken == GATE else weights


def d6(broken):
    probs = next_tokens(broken)
    mixed = mix_along(prefix_gate(probs, broken), probs)
    return gap(mixed, exact.conditionals(exact.data_probs(pi), V, N)[0])


judge("D6", d6(FALSIFIER), FALSIFIER)

# %% [markdown]
# ## D13. Any velocities that generate the parts' paths
#
# D4 asks that experts use V4's velocity. Continuity asks for less: it is linear in the flux
# $p\,u$, so $\sum_k r_k u^k$ generates $p_t$ for *any* $u^k$ that generate $p_t^k$. Here each
# expert adds a corrector of a strength $\beta_k$ of its own,
# $\bar u^k = (1 + \beta_k)\, u^k - \beta_k\, \check u^k$ (**V7**). The residual is that of the
# continuity equation, $\partial_t p_t + \operatorname{div}(p_t u_t)$ (**C1**), with
# $\partial_t p_t$ by complex step.

# %%
beta = jnp.array([0.0, 0.5, 2.0])


def backward(pairs, state, t):
    """V6: ǔ_t^i(v, z) = κ̇/κ [δ_{z^i}(v) − p_{0|t}^i(v | z)]."""
    source_probs = paths.token_posterior(pairs, x_0, num_tokens=S)
    return velocities.backward_velocity(source_probs, state, t, schedule)


def corrected(ahead, pairs, state, t, b):
    """V7: ū = (1 + β) u − β ǔ."""
    return velocities.corrected_velocity(ahead, backward(pairs, state, t), 1 + b, b)


all_corrected = jax.jit(jax.vmap(jax.vmap(corrected, (0, 0, 0, None, None)), (0, 0, None, 0, 0)))


def corrected_mixture(t, broken):
    """Σ_k r_k ū^k: [Z, N, S]."""
    _, pairs, ahead = parts_at(t, broken)
    own = all_corrected(ahead, pairs, z, named_schedules(t, broken), beta)
    return mix_velocities(gate_at(t, broken), own)


def d13(broken, t=0.4):
    kappa_rate = powers * t ** (powers - 1)
    ends = exact.mixture_token_path(np.ones(N), V, S) - exact.mixture_token_path(np.zeros(N), V, S)
    slope = exact.path_derivative(pi, token_path(t), kappa_rate[:, None, None, None] * ends)
    probs = exact.marginal_path(pi, token_path(t))
    return gap(slope, -exact.divergence(probs, np.asarray(corrected_mixture(t, broken))))


judge("D13", d13(FALSIFIER), FALSIFIER)
print(
    f"its distance from V4's velocity: {gap(corrected_mixture(0.4, None), true_velocity(0.4)):.2f}"
)

# %% [markdown]
# ## Which step leans on which hypothesis
#
# All switches at once, whatever `FALSIFIER` says. Where a hypothesis does not enter, breaking it
# does nothing: D1 knows no gate and no schedule.

# %%
STEPS = dict(zip(LEANS_ON, (d1, d2, d3, tower, d4, d4_step, d5, d6, d13), strict=True))
table = {label: [step(broken) for broken in SWITCHES] for label, step in STEPS.items()}
print(f"{'':18}" + "".join(f"{broken or 'as stated':>27}" for broken in SWITCHES))
for label, residuals in table.items():
    print(f"{label:18}" + "".join(f"{residual:27.1e}" for residual in residuals))
    for broken, residual in zip(SWITCHES, residuals, strict=True):
        assert (residual >= 1e-3) if broken in LEANS_ON[label] else (residual <= 1e-12)

# %% [markdown]
# D4's residual over time, with the true gate and with each hypothesis broken.

# %%
moments = np.linspace(0.02, 0.98, 25)
figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for broken, marker in zip(SWITCHES, "os^d", strict=True):
    residuals = np.array([d4(broken, t) for t in moments])
    ax.semilogy(moments, np.maximum(residuals, 1e-17), marker, ms=4, label=broken or "as stated")
    assert np.all(residuals <= 1e-12) if broken is None else np.all(residuals >= 1e-3)
ax.axhline(1e-12, color="gray", lw=1, ls=":")
ax.set(xlabel="time t (source to data)", ylabel="largest |gap| of D4 (jumps per unit time)")
ax.legend(ncols=2, loc="center")
plt.show()

# %% [markdown]
# The velocity itself grows like $1/(1 - t)$, and the misses of the broken ones with it.
#
# ## D8. Where the context decides, hard routing is exact
#
# If the part is a function of the context, $k = f(c)$, then $r_k(\cdot, t) = \mathbb 1[k = f(c)]$
# at every $t$: send the prompt to one expert and forget the others. Here the first token is the
# context, it is never masked, and the parts are cut by it. Broken: two parts that both contain
# prompts of either kind.


# %%
def given_first(probs):
    """A part with an all-mask source behind its first token."""
    masks = np.tile(np.eye(S)[V], (N, 1))
    return exact.FactoredCoupling(probs / probs.sum(), masks, np.arange(N) == 0)


def hard_routing_gap(joint, t):
    """The hard-routed posterior against the whole's, where p_t > 0."""
    part = jnp.array(z[:, 0] % V)
    gate = jax.jit(jax.vmap(lambda k: mixture.context_posterior(k, V)))(part)
    own = np.stack([exact.posteriors(given_first(probs), token_path(t))[0] for probs in joint])
    truth, _, support = exact.posteriors(given_first(joint.sum(axis=0)), token_path(t))
    routed = mix_posteriors(gate, own)
    return gap(routed[support], truth[support])


cut = np.stack([np.where(x[:, 0] == k, pi.sum(axis=0), 0.0) for k in range(V)])  # w_k q_k
soft = np.stack([0.4 * q_parts[0], 0.6 * q_parts[1]])
for t in (0.0, 0.4, 1.0):
    judge(f"D8 at t = {t}", hard_routing_gap(cut, t))
print(f"parts that the context does not tell apart: {hard_routing_gap(soft, 0.4):.2f}")
assert hard_routing_gap(soft, 0.4) >= 1e-3

# %% [markdown]
# ## D9. Training needs no communication
#
# $\nabla_{\theta_k} \sum_j w_j L_j(\theta_j) = w_k \nabla L_k(\theta_k)$. With tabular experts,
# $\hat q_k = \operatorname{softmax}(\theta_k)$, the right side is $w_k (\hat q_k - q_k)$, which
# reads part $k$ alone. Train the mixture as one model instead, on $-\log \sum_k w_k \hat q_k$, and
# the gradient of each expert depends on all the others.


# %%
def apart(theta):
    """Σ_k w_k L_k(θ_k), L_k = −Σ_x q_k(x) log q̂_k(x)."""
    losses = -jnp.sum(q_parts * jax.nn.log_softmax(theta), axis=-1)
    return objectives.decentralized_loss(losses, jnp.zeros(()), w)


def as_one(theta):
    """−Σ_x q(x) log Σ_k w_k q̂_k(x)."""
    log_q = mixture.mix_log_probs(jnp.log(w), jax.nn.log_softmax(theta))
    return -jnp.sum(pi.sum(axis=0) * log_q)


theta = jnp.array(rng.normal(size=(K, V**N)))
alone = w[:, None] * (np.exp(theta) / np.exp(theta).sum(axis=1, keepdims=True) - q_parts)
judge("D9", gap(jax.grad(apart)(theta), alone))

# %% [markdown]
# How expert $k$'s gradient moves when expert $j$ does, $\partial^2 / \partial\theta_k\,
# \partial\theta_j$, the largest entry of each block. Apart, the blocks off the diagonal are not
# small but 0: nothing to send.

# %%
for name, loss in (("apart", apart), ("as one", as_one)):
    blocks = np.abs(jax.jit(jax.hessian(loss))(theta)).max(axis=(1, 3))  # [K, K]
    print(name, blocks.round(4).tolist())
    off_diagonal = blocks[~np.eye(K, dtype=bool)]
    assert np.all(off_diagonal == 0.0) if loss is apart else np.all(off_diagonal >= 1e-3)

# %% [markdown]
# ## 240 random cases
#
# One space proves nothing about others. `python -m dfm_jax verify --labels D4` draws 240:
# distributions with zeros, disjoint and equal parts, dependent couplings, contexts, $\kappa$ at its
# ends, one expert, one position; forward, backward, convex, metric and Campbell velocities, and
# parallel steps. From Python it is `theory.verify`.

# %%
(row,) = theory.verify(["D4"])
print(f"{row.label}  {row.statement}")
print(f"largest residual over {row.instances} cases: {row.residual:.1e}")
print(f"smallest falsifier over {row.falsifier_instances} generic ones: {row.falsifier:.1e}")
assert row.passed

# %% [markdown]
# ## Try
#
# - Set `FALSIFIER` to one of the switches and run all cells: each prints its residual under it.
# - Give the parts disjoint supports (a hard split): `q_parts` with zeros. Then some $p_t^k(z)$
#   vanish near $t = 1$, $r_k = 0$ there, and expert $k$ may say anything, NaN included.
# - Make `source` the same column eight times (independent of the data): the gate at $t = 0$ knows
#   nothing, $r_k(z, 0) = w_k$.
# - Make it all masks: the gate no longer depends on $t$ (**P7**).
#
# ## Next
#
# [4_gates.ipynb](4_gates.ipynb): the gate that needs no router, and what the others cost.
