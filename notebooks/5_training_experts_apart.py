# %% [markdown]
# # Training experts apart, on devices
#
# Eight small experts on eight devices, each trained on its own part of real text by the package's
# own training functions, beside one dense model that reads the same bytes on the same devices. The
# story: what each compiled program *says* to other devices (**D9** leaves experts nothing to say),
# how a gate makes one model of them afterwards (**D6**, **D7**), and what independence cost at this
# budget, to the last digit (**B1**). The devices are virtual: eight parts of one CPU. It takes
# about a minute on two cores.

# %%
import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before anything asks for a device
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import PartitionSpec as P

from dfm_jax import accounting, mixture, parallel
from dfm_jax.data.tokens import TokenSet, byte_tokenizer, encode_texts, split_held_out
from dfm_jax.models import TransformerConfig, transformer
from dfm_jax.training.batches import stream_windows
from dfm_jax.training.config import OptimizerConfig, TrainConfig, hyperparameters
from dfm_jax.training.evaluation import ratio_with_interval, token_losses
from dfm_jax.training.fit import init_and_step, run_keys

sys.path.append("..")  # the folder of `experiments`, which is not installed
from experiments.lib.domains import load_bbc, load_kjv, load_shakespeare, load_stdlib

plt.rcParams["figure.dpi"] = 80
K, N = len(jax.devices()), 64  # experts; bytes of a sequence
mesh = parallel.make_mesh({"expert": K})  # nothing is shared along this axis
line = parallel.make_mesh({"data": K})  # the same devices, for one run over all of them

# %% [markdown]
# ## Eight parts of real text
#
# The King James Bible, Shakespeare, Python's standard library, and five topics of BBC news. Every
# part is cut to the same number of bytes, so each has the mass $w_k = 1/8$. A tenth of the
# documents, chosen by the hash of their text, is held out.

# %%
corpora = [load_kjv(), load_shakespeare(), load_stdlib(), load_bbc()]
texts = {c.domain: [d.text for d in c.documents] for c in corpora[:3]}
for document in corpora[3].documents:  # named topic/number
    texts.setdefault(document.name.split("/")[0], []).append(document.text)

names, w = list(texts), np.full(K, 1 / K)
splits = [split_held_out(found, 0.1) for found in texts.values()]
parts = [encode_texts(train, byte_tokenizer()).tokens for train, _ in splits]
size = min(map(len, parts))
parts = [part[:size] for part in parts]
assert len(parts) == K
print(f"{size:,} bytes of training text for each of {', '.join(names)}")

# %% [markdown]
# ## The statement, and two programs
#
# $$\nabla_{\theta_k} \sum_j w_j L_j(\theta_j) = w_k \nabla L_k(\theta_k) \qquad \textbf{(D9)}$$
#
# Experts share no parameters, so no step needs another expert's gradient.
# `parallel.independent(step, mesh)` is that as a program, `jit(shard_map(vmap(step)))`: one run on
# each device. `parallel.sharded_step` is the other side: one run, whose batch is cut over all
# devices. `step` is the same function for both.
#
# The budget is the same too: 120 updates; an expert reads 4 sequences of 64 bytes an update, the
# dense the 32 of all experts together. So both variants read the same bytes in the same order, and
# spend the same FLOPs. Both have one layer and one learning rate; neither was tuned.

# %%
config = TrainConfig(
    model=TransformerConfig(
        num_tokens=256, num_states=257, width=64, num_layers=1, num_heads=2, ffn_width=168
    ),
    optimizer=OptimizerConfig(learning_rate=4e-3),
    num_steps=120,
    batch_size=4,
    num_positions=N,
)
init, step = init_and_step(config)
rates = hyperparameters(config)
init_keys, batch_keys, step_keys, _ = jnp.stack([run_keys(seed) for seed in range(K)]).T
readers = [stream_windows(part, N, config.batch_size) for part in parts]


def batch_of(index):  # [K, B, N]: a function of the step alone
    rows = [read(key, index) for read, key in zip(readers, batch_keys, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def joined(batch):  # the same sequences as one batch of the dense model: [K B, N]
    return jax.tree.map(lambda leaf: leaf.reshape(-1, N), batch)


begin = parallel.independent(init, mesh)
start = begin(init_keys, {name: jnp.full(K, value) for name, value in rates.items()})
state = jax.tree.map(lambda leaf: leaf[0], jax.device_get(start))  # the dense model's: of one run
whole = jax.device_put(state, parallel.state_shardings(state, line))
per_expert = sum(leaf.size for leaf in jax.tree.leaves(state.params))
print(
    f"{per_expert:,} parameters; {config.num_steps * K * config.batch_size * N:,} bytes a variant"
)

# %% [markdown]
# Which device holds what, asked of the arrays themselves. An expert's parameters lie on one device
# and nowhere else; the dense model's lie on every device.


# %%
def held(leaf, rows):  # [rows, devices]: whether device d holds row k
    found = np.zeros((rows, K), bool)
    for shard in leaf.addressable_shards:
        found[shard.index[0] if rows > 1 else slice(None), shard.device.id] = True
    return found


theirs, its = jax.tree.leaves(start.params)[0], jax.tree.leaves(whole.params)[0]
figure, axes = plt.subplots(
    2, 1, figsize=(6, 4), height_ratios=[8, 1], sharex=True, layout="constrained"
)
axes[0].imshow(held(theirs, K), cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
axes[0].set_yticks(range(K), names)
axes[1].imshow(held(its, 1), cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
axes[1].set_yticks([0], ["dense"])
axes[1].set_xlabel("device; dark: it holds the parameters")
plt.show()
assert (held(theirs, K) == np.eye(K, dtype=bool)).all()
assert held(its, 1).all()

# %% [markdown]
# ## What the programs say
#
# `parallel.collectives` reads the text of the *compiled* program: which instructions exchange
# anything between devices, which devices, how many bytes. Compiled are, for the same step: experts
# by `shard_map`, and by `pmap`; four experts of two devices each; the dense model. And what mixes
# experts that lie on different devices, `mixture.mix_over_devices`:
#
# $$\sum_k r_k u^k = \frac{\sum_k e^{\ell_k - m} u^k}{\sum_k e^{\ell_k - m}}, \qquad
#   \ell_k = \log w_k + \log p^k(x^{\le t}) \qquad \textbf{(D4, D6)}$$
#
# whose two sums are one all-reduce. (Given $m$, an upper bound of the $\ell_k$, such as
# $\log p(x^{\le t-1})$ of the step before; without it, the largest is found by a second one.)


# %%
def compiled(fn, *args):
    return jax.jit(fn).lower(*args).compile()


def mix(log_p, log_w, values, bound):
    return mixture.mix_over_devices(log_w, log_p, values, bound=bound)


pairs = parallel.make_mesh({"expert": 4, "data": 2})
apart, by_pmap = (
    parallel.independent(step, mesh, backend=backend) for backend in ("shard_map", "pmap")
)
wide = parallel.independent(step, pairs, data_args=(1,))
together = parallel.sharded_step(step, line, state, donate=False)
mixed = jax.shard_map(mix, mesh=mesh, in_specs=(*[P("expert")] * 3, P()), out_specs=P())
example = jnp.zeros(K), jnp.log(w), jnp.zeros((K, 256)), jnp.zeros(())

# %%
batch = batch_of(0)
one, several = (start, batch, step_keys), (whole, joined(batch), step_keys[0])
four = jax.tree.map(lambda leaf: leaf[:4], (jax.device_get(start), batch, step_keys))
programs = {
    "experts, shard_map": compiled(apart, *one),
    "experts, pmap": compiled(by_pmap, *one),
    "4 experts × 2 devices": compiled(wide, *four),
    "dense, data-parallel": compiled(together, *several),
    "mixing, a token": compiled(mixed, *example),
}
found = {name: parallel.collectives(program) for name, program in programs.items()}
for name, said in found.items():
    sent = sum(each.num_bytes for each in said)
    print(f"{name:24}{sent:>10,} bytes  {parallel.count_by_kind(said) or 'nothing'}")

# %%
inside = {(2 * k, 2 * k + 1) for k in range(4)}
assert not found["experts, shard_map"]
assert not found["experts, pmap"]
assert all(set(each.groups) <= inside for each in found["4 experts × 2 devices"])
assert parallel.count_by_kind(found["dense, data-parallel"])["all-reduce"] >= 1
assert parallel.count_by_kind(found["mixing, a token"]) == {"all-reduce": 1}

counts = [len(said) for said in found.values()]
figure, axis = plt.subplots(figsize=(6, 2.4), layout="constrained")
bars = axis.barh(list(found), counts, color=["C0"] * 3 + ["C1", "C2"])
axis.bar_label(bars, padding=3)
axis.invert_yaxis()
axis.set_xticks(range(max(counts) + 1))
axis.set_xlabel("collectives in the compiled program")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# What four experts on two devices each say is said inside an expert: every group of devices in its
# program is one of the pairs.
#
# ## Apart is alone
#
# Experts on devices must be what they would be had each been trained in a process of its own. So:
# three updates by `shard_map`, by `pmap`, and by a loop that runs each expert alone on one device
# and has never heard of the others.


# %%
def after(update, state, read, keys, steps=3):
    for index in range(steps):
        state, metrics = update(state, read(index), keys)
    return jax.device_get((state.params, metrics.loss))


def alone(k):  # expert k by itself, on one device
    own = jax.tree.map(lambda leaf: leaf[k], jax.device_get(start))
    return after(one_step, own, lambda index: readers[k](batch_keys[k], index), step_keys[k])


def gap(these, those):
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), these, those)
    return max(jax.tree.leaves(gaps))


one_step = jax.jit(step)
by_loop = jax.tree.map(lambda *leaves: np.stack(leaves), *map(alone, range(K)))
by_shard_map, by_pmap = (
    after(programs[f"experts, {backend}"], start, batch_of, step_keys)
    for backend in ("shard_map", "pmap")
)
gaps = gap(by_shard_map, by_pmap), gap(by_shard_map, by_loop)
assert gaps[0] == 0
assert gaps[1] < 1e-5
print("largest difference of a parameter or a loss after three updates:")
print(f"shard_map − pmap {gaps[0]:.1e}, shard_map − loop {gaps[1]:.1e} (bound 1e-5, float32)")

# %% [markdown]
# ## Training
#
# The programs that were counted are the ones that train.


# %%
def trained(update, state, read, keys):
    losses = []
    for index in range(config.num_steps):
        # one at a time: devices of a CPU share threads, and two steps can block each other
        state, metrics = jax.block_until_ready(update(state, read(index), keys))
        losses.append(metrics.loss)
    return jax.device_get((state.params, jnp.stack(losses)))


params, losses = trained(programs["experts, shard_map"], start, batch_of, step_keys)
dense = programs["dense, data-parallel"]
central, central_losses = trained(dense, whole, lambda index: joined(batch_of(index)), step_keys[0])

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
colors = plt.cm.viridis(np.linspace(0, 0.9, K))
for name, row, color in zip(names, losses.T, colors, strict=True):
    axis.plot(row, color=color, lw=1, label=name)
axis.plot(central_losses, color="k", lw=2, label="dense, all parts")
axis.set(xlabel="updates", ylabel="training loss (nats per byte)")
axis.legend(fontsize=8, ncols=2)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# An expert's curve is of its own part, the dense model's of all parts, so the curves do not say who
# is better; held-out text does.
#
# ## One model of eight
#
# $$r_k(x^{\le t+1}) \propto r_k(x^{\le t})\, q_k(x^{t+1} \mid x^{\le t}), \qquad
#   q(v \mid x^{\le t}) = \sum_k r_k(x^{\le t})\, q_k(v \mid x^{\le t})
#   \qquad \textbf{(D7, D6)}$$
#
# Of each part 16 held-out documents, and of each document the first four windows of 64 bytes. The
# gate begins anew with each window, and is told nothing about the part.

# %%
length = 4 * N


def beginnings(held_out, count=16):
    rows = [np.frombuffer(text.encode(), np.uint8)[:length] for text in held_out]
    return [row for row in rows if len(row) == length][:count]


rows = np.concatenate([beginnings(held_out) for _, held_out in splits])  # [documents, 4 N]
sizes = np.full(len(rows), length)
documents = TokenSet(rows.ravel(), np.concatenate([[0], np.cumsum(sizes)]), sizes)
every = [jax.tree.map(lambda leaf, k=k: leaf[k], params) for k in range(K)]
nats = np.stack([token_losses(one, config, documents) for one in every])
central_nats = token_losses(central, config, documents).reshape(-1, N).astype(float)

log_q = -nats.reshape(K, -1, N).transpose(1, 2, 0).astype(float)  # [windows, N, K]
part = np.repeat(np.arange(K), len(log_q) // K)  # of each window

# %%
with jax.enable_x64(True):
    log_w = jnp.log(w)
    gate = jax.vmap(mixture.bayes_gate, in_axes=(None, 0))(log_w, log_q).log_weights
    token_nats = -jax.nn.logsumexp(gate[:, :-1] + log_q, axis=-1)  # D6, a byte at a time
    log_p = log_q.sum(axis=1)  # log q_k(x) of whole windows
    cost = jax.vmap(accounting.routing_cost, in_axes=(None, 0, 0))(log_w, log_p, part)
    gate, token_nats, cost = map(np.asarray, (gate, token_nats, cost))

whole_nats = -np.logaddexp.reduce(np.log(w) + log_p, axis=1)  # −log Σ w_k q_k(x), by numpy
own = -log_p[np.arange(len(part)), part]
d7, b1 = np.abs(token_nats.sum(axis=1) - whole_nats).max(), np.abs(own - whole_nats - cost).max()
assert d7 < 1e-9
assert b1 < 1e-9
print(f"D7, token by token against the mixture of whole windows: {d7:.1e} nats (bound 1e-9)")
print(f"B1, −log q_k(x) + log Σ_j w_j q_j(x) = log w_k − log r_k(x): {b1:.1e} nats (bound 1e-9)")

# %% [markdown]
# The same distribution where the experts lie, each on its device, by the program that has one
# all-reduce: the distribution of the byte behind the first 32 of a window of code.

# %%
network = transformer(config.model)
window, seen = int(np.argmax(part == names.index("stdlib"))), 32
read = rows.reshape(-1, N)[window, :seen]


def next_log_probs(params, x_before):
    return jax.nn.log_softmax(network.apply(params, x_before)[-1])


prefix = jnp.tile(jnp.array([256, *read.tolist()]), (K, 1))  # behind the mask, as in training
probs = jnp.exp(parallel.independent(next_log_probs, mesh)(params, prefix))
before = np.cumsum(log_q[window], axis=0)  # log q_k(x^{≤t}), [N, K]
joint = np.log(w) + before[seen - 1]
bound = np.logaddexp.reduce(np.log(w) + before[seen - 2])
as_float32 = [jnp.asarray(x, jnp.float32) for x in (before[seen - 1], np.log(w), probs, bound)]
over_devices, log_p_t = programs["mixing, a token"](*as_float32)

r = np.exp(joint - np.logaddexp.reduce(joint))
here = r @ np.asarray(probs, float)
miss = np.abs(np.asarray(over_devices) - here).max()
assert miss < 1e-5
assert np.abs(r - np.exp(gate[window, seen])).max() < 1e-9
print(f"{bytes(read)!r}: r = {dict(zip(names, r.round(3).tolist(), strict=True))}")
print(f"over devices − numpy, largest of 256 probabilities: {miss:.1e} (bound 1e-5, float32)")

# %% [markdown]
# ## Who wins, at this budget
#
# Nats per byte on held-out text, with the 95 % interval of the difference over documents. B1 splits
# it: what the expert of the part pays more than the dense model, plus the cost of not being told
# which part it is, at most $-\log w_k$ a window (**B11**).


# %%
def by_document(of_windows):
    return of_windows.reshape(len(rows), -1).sum(axis=1)


def difference(of_windows, kept=slice(None)):
    mean, half = ratio_with_interval(by_document(of_windows)[kept], sizes[kept])
    return f"{mean:+.3f} ± {half:.3f}"


central_windows = central_nats.sum(axis=1)
terms = whole_nats - central_windows, own - central_windows, -cost
print(f"{'part':15}{'dense':>8}{'mixture':>9}{'mixture − dense':>20}{'own':>18}{'cost':>18}")
for k, name in enumerate([*names, "all"]):
    of_windows = part == k if k < K else part >= 0
    of_documents = of_windows.reshape(len(rows), -1)[:, 0]
    levels = [x[of_windows].mean() / N for x in (central_windows, whole_nats)]
    row = [difference(term, of_documents) for term in terms]
    print(f"{name:15}{levels[0]:>8.3f}{levels[1]:>9.3f}{row[0]:>20}{row[1]:>18}{row[2]:>18}")
assert np.abs(terms[0] - terms[1] - terms[2]).max() < 1e-9
assert (-cost).max() <= np.log(K)

# %%
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for shift, (term, label) in enumerate(zip(terms, ("mixture", "own expert"), strict=False)):
    each = [ratio_with_interval(by_document(term).reshape(K, -1)[k], sizes[:16]) for k in range(K)]
    means, halves = np.transpose(each)
    place = np.arange(K) + 0.2 * shift
    axis.errorbar(place, means, halves, fmt="os"[shift], capsize=3, label=label)
axis.axhline(0, color="k", lw=1)
axis.set_xticks(np.arange(K) + 0.1, names, rotation=20)
axis.set_ylabel("nats per byte, minus the dense model's")
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

mean, half = ratio_with_interval(by_document(terms[0]), sizes)
verdict = (
    "undecided" if abs(mean) < half else "the dense model wins" if mean > 0 else "the experts win"
)
num_bytes = config.num_steps * K * config.batch_size * N
print(
    f"{config.num_steps} updates, {num_bytes:,} bytes a variant, {per_expert:,} parameters a model:"
)
print(f"{verdict}, by {abs(mean):.3f} ± {half:.3f} nats per byte on {len(rows)} held-out documents")

# %% [markdown]
# Below zero is better than the dense model. Read the two terms of B1 in the table. *Own*: the
# expert of a part that differs in kind from the rest can be ahead of the dense model; where parts
# are alike, as topics of news are, an expert has read an eighth of what is common to all. *Cost*:
# it is negative where the others foretell a window better than its own expert does, as with the
# window of code above, which opens with a comment in English. Nothing here is about devices: the
# same experts on eight machines give the same numbers. How the sign turns with the budget is what
# [`experiments.regimes`](../experiments/README.md) maps.
#
# ## Try
#
# - `num_steps=400`: does the sign of a part turn? (The cosine ends where the steps do.)
# - Deal the text at random to the eight parts: what do *own* and *cost* become, and why can no
#   gate help?
# - Average gradients over experts in their step, `jax.lax.pmean(…, "expert")`, and count again.
# - Leave `bound` out of `mix_over_devices`, or give `sharded_step` `placement="sharded"`, and
# count.
#
# ## Next
#
# [Language and images](6_language_and_images.ipynb); then
# [From here to a TPU pod](7_from_here_to_a_tpu_pod.ipynb), the same programs for other machines.
