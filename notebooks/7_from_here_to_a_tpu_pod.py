# %% [markdown]
# # From here to a TPU pod
#
# What changes between a notebook and a pod is not the program. It is how much memory and traffic a
# run needs, what it is compiled for, who starts it, and what a failure does. This notebook takes
# them in turn: formulas and their measured counterparts, the step of a billion-parameter expert
# lowered for TPUs on this CPU, the files for SLURM and Kubernetes, and three experts launched here,
# one of which cannot work and two of which are preempted. Of the statements it touches **D9**,
# which is why an expert's program says nothing to other experts' devices.
#
# **Never run here: a real TPU.** Nothing below is a speed of one. It takes about a minute on two
# cores, half of it the two launches.

# %%
import jax

jax.config.update("jax_num_cpu_devices", 8)  # before anything asks for a device
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import yaml
from jax.sharding import PartitionSpec as P

from dfm_jax import launch, mixture, parallel
from dfm_jax.models import transformer
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.sizes import SIZES, num_parameters
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import TrainConfig, hyperparameters
from dfm_jax.training.ensemble import make_ensemble
from dfm_jax.training.fit import init_and_step
from dfm_jax.training.presets import PRESETS
from dfm_jax.training.stopping import ExitStatus, StopRequest

sys.path.append("..")  # the folder of `experiments`, which is not installed
from experiments.lib.domains import load_kjv, load_shakespeare

plt.rcParams["figure.dpi"] = 80
results = Path("../experiments/results")
scaling, compiled, launching = (
    json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("scaling", "compile_tpu", "launching")
)

# %% [markdown]
# ## 1. Memory and traffic, on paper
#
# The study `experiments.scaling` counts what one chip holds and sends for an update of 8.4 million
# tokens: one dense model on all chips, or $K = 8$ experts of the dense model's size on an eighth of
# the chips each. Its formulas for a model of $P$ parameters, on $n$ chips, are short enough to
# count again:
#
# - state: 16 bytes a parameter, so $16 P$ for the dense model and $16 K P$ for the experts;
# - data-parallel traffic: each chip sends $2 \cdot 4 P (n - 1) / n$ bytes an update, a ring's
#   all-reduce of float32 gradients. Experts on $n / K$ chips each have $n / K$ in its place.

# %%
rows, sizes = scaling["rows"], scaling["summary"]["parameters"]
largest = TransformerConfig(
    num_tokens=32_000, width=8192, num_layers=80, num_heads=64, num_kv_heads=8, ffn_width=28_672,
    tied=False, scan_layers=True,
)  # fmt: skip
for name, model in {"1b": SIZES["1b"], "70b": largest}.items():
    shapes = jax.eval_shape(transformer(model).init, jax.random.key(0))  # allocates nothing
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert counted == num_parameters(model) == sizes[name]
    print(f"{name}: {counted:,} parameters, of the leaves, by formula and in the study")


def ring(row):  # GB that a chip sends for an update of a data-parallel run
    span = row["chips"] // (1 if row["variant"] == "dense" else 8)
    return 2 * 4 * sizes[row["size"]] * (span - 1) / span / 1e9


in_a_pod = [
    row for row in rows
    if row["kind"] == "v5p" and row["layout"] == "data-parallel" and "dense model's" not in
    row["variant"]
]  # fmt: skip
misses = [abs(ring(row) - row["fast_gb"]) / max(row["fast_gb"], 1) for row in in_a_pod]
assert max(misses) < 1e-3  # the study keeps four digits
print(
    f"traffic of {len(in_a_pod)} data-parallel runs on v5p, counted again: off by at most", end=""
)
print(f" {max(misses):.0e} of it")

# %% [markdown]
# From the study's file: what a chip sends for the same tokens, how many chips hold the run at all,
# and how long the dense model takes over what experts take. "Dense's batch" means experts whose
# batch is as large as the dense model's, so that each updates an eighth as often.

# %%
variants = {"dense": "C1", "experts, shared batch": "C0", "experts, dense model's batch": "C2"}
names, place = list(sizes), np.arange(len(sizes))


def chosen(kind, chips, variant, size):  # the quickest layout that fits
    keys = {"kind": kind, "chips": chips, "variant": variant, "size": size}
    keys |= {"quickest": True, "fits": True}
    return next((row for row in rows if keys.items() <= row.items()), None)


figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for shift, (variant, color) in enumerate(variants.items()):
    found = [chosen("v5p", 512, variant, size) for size in names]
    sent = [row["fast_gb"] + row["slow_gb"] for row in found]
    axes[0].bar(place + 0.27 * (shift - 1), sent, 0.25, color=color, label=variant)
axes[0].set(yscale="log", xlabel="parameters", ylabel="GB a chip sends, 8.4 M tokens")
axes[0].legend(title="512 v5p", fontsize=8)

axes[0].set_xticks(place, names)

cross = scaling["summary"]["crossovers"]
cross = [row for row in cross if row["variant"] == "experts, shared batch"][::-1]
for height, row in enumerate(cross):
    ends = row["dense_fits_from"], row["experts_fit_from"] or np.nan
    axes[1].plot(ends, (height, height), "0.7", zorder=0)
    axes[1].plot(ends[:1], height, "o", color="C1", label="" if height else "dense")
    axes[1].plot(ends[1:], height, "s", color="C0", mfc="none", label="" if height else "8 experts")
axes[1].set_yticks(range(len(cross)), [f"{row['kind']}, {row['size']}" for row in cross])
axes[1].set_xscale("log", base=2)
axes[1].set_xticks([8, 32, 128, 512, 2048], [8, 32, 128, 512, 2048])
axes[1].set(xlabel="chips from which the run fits", xlim=(6, 4096))
axes[1].legend(loc="lower right", fontsize=8)
plt.show()

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
for axis, variant in zip(axes, list(variants)[1:], strict=True):
    for marker, kind in zip("os^", ("v5e", "v5p", "h100"), strict=True):
        chips = [n for n in (8, 128, 512, 4096) if chosen(kind, n, variant, "7b")]
        pairs = [(chosen(kind, n, "dense", "7b"), chosen(kind, n, variant, "7b")) for n in chips]
        ratios = [one["in_turn_s"] / other["in_turn_s"] for one, other in pairs]
        axis.plot(chips, ratios, marker + "-", mfc="none", label=kind)
    axis.axhline(1, color="k", lw=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks([128, 512, 4096], [128, 512, 4096])
    axis.set(xlabel="chips", title=variant)
    axis.title.set_size(10)
axes[0].set_ylabel("dense model's time / experts', 7b,\nno overlap")
axes[0].legend()
plt.show()

# %% [markdown]
# No blue square at v5e, 70b: eight such experts fit on none of the numbers tried, up to 4,096.
# Below 1, experts take longer than the dense model: where they barely fit, they take smaller
# micro-batches and gather their parameters more often.
#
# So independence by itself does not make training faster inside one fast network: with as many
# updates, experts wait as long as the dense model. It does where the network is slow, or where
# experts update more seldom, and what fewer updates cost in loss these formulas do not say. What it
# always costs is room: every expert holds a model.
#
# ## 2. The same program, lowered for a TPU
#
# `jax.export` lowers a function for a platform that is not here; it needs neither a TPU nor its
# compiler. Below, the update of a billion parameters (20 scanned layers, one sequence of 2,048
# tokens to a chip, AdamW), for eight chips with one expert each, and as a dense model over the
# eight. No array is made: shapes suffice.

# %%
devices, billion = 8, replace(SIZES["1b"], max_positions=None)
mesh, line = parallel.make_mesh({"expert": devices}), parallel.make_mesh({"data": devices})


def shapes_of(config):  # of an update by one device: state, batch, key
    init, step = init_and_step(config)
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(init, key, hyperparameters(config))
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.num_positions), jnp.int32)
    return step, state, Batch(tokens, jax.ShapeDtypeStruct(tokens.shape, bool)), key


def taller(tree, stack):  # every leaf for all devices: stacked, or with as many times the rows
    def grown(leaf):
        head = (devices, *leaf.shape) if stack else (devices * leaf.shape[0], *leaf.shape[1:])
        return jax.ShapeDtypeStruct(head, leaf.dtype)

    return jax.tree.map(grown, tree)


def update_programs(config):
    step, state, batch, key = shapes_of(config)
    apart = jax.jit(parallel.independent(step, mesh))
    together = jax.jit(parallel.sharded_step(step, line, state, donate=False))
    return {
        "expert step": (apart, taller((state, batch, key), True)),
        "dense step": (together, (state, taller(batch, False), key)),
    }


def mix(log_p, log_w, values, bound):
    return mixture.mix_over_devices(log_w, log_p, values, bound=bound)


mixed = jax.shard_map(mix, mesh=mesh, in_specs=(*[P("expert")] * 3, P()), out_specs=P())
each = jax.ShapeDtypeStruct((devices,), jnp.float32)
probs = jax.ShapeDtypeStruct((devices, billion.num_tokens), jnp.float32)
asked = each, each, probs, jax.ShapeDtypeStruct((), jnp.float32)

large = TrainConfig(model=billion, batch_size=1, num_positions=2048, held_out=0)
programs = {**update_programs(large), "mixing, a token": (jax.jit(mixed), asked)}
exported = {
    name: jax.export.export(fn, platforms=["tpu"])(*shapes)
    for name, (fn, shapes) in programs.items()
}

# %%
COLLECTIVE = r"stablehlo\.(all_\w+|reduce_scatter|collective_\w+|send|recv)\b"
print(
    f"{'program':17}{'for':>6}{'devices':>9}{'kB':>6}{'contractions':>14}  collectives in the text"
)
for name, one in exported.items():
    text = one.mlir_module()
    found, dots = dict(Counter(re.findall(COLLECTIVE, text))), text.count("dot_general")
    print(
        f"{name:17}{one.platforms[0]:>6}{one.nr_devices:>9}{len(text) // 1000:>6}{dots:>14}", end=""
    )
    print(f"  {found or 'none'}")

texts = {name: one.mlir_module() for name, one in exported.items()}
assert all(one.platforms == ("tpu",) and one.nr_devices == 8 for one in exported.values())
assert "manual_computation" in texts["expert step"]
assert not re.search(COLLECTIVE, texts["expert step"])
assert re.search(COLLECTIVE, texts["mixing, a token"])

# %% [markdown]
# Read this with care. An expert's step is a *manual* computation (`shard_map`): what it sends would
# stand in the text, as it does for mixing, and nothing does. The dense model's text holds no
# collective either, but for another reason: its step is written for one device, the text says only
# where arrays lie, and the compiler puts the exchanges in. So the dense model has to be compiled to
# be counted: a tiny one here, for eight virtual CPU devices. (Of mixing's two sums the compiler
# makes one all-reduce.)

# %%
for name, (fn, shapes) in update_programs(replace(PRESETS["tiny"], batch_size=1)).items():
    said = parallel.collectives(fn.lower(*shapes).compile())
    print(
        f"{name}, compiled for {devices} CPU devices: {parallel.count_by_kind(said) or 'nothing'}"
    )
    assert bool(said) == (name == "dense step")

# %% [markdown]
# And for TPUs: `experiments.compile_tpu` compiled them with the real compiler, libtpu, which runs
# on a CPU for chips that are described by name. From its file, collectives by program and topology
# (`−` where `pmap` refuses these chips), and what the step of the billion holds at its peak.

# %%
tiny = [row for row in compiled["rows"] if row["size"] == "tiny"]
topologies = list(dict.fromkeys(row["topology"] for row in tiny))
print(f"{'program':26}" + "".join(f"{name:>14}" for name in topologies))
for program in dict.fromkeys(row["program"] for row in tiny):
    ours = [row for row in tiny if row["program"] == program]
    said = [sum(row["collectives"].values()) if "collectives" in row else "−" for row in ours]
    print(f"{program:26}" + "".join(f"{count:>14}" for count in said))

for row in compiled["rows"]:
    if row["size"] == "1b":
        peak, paper = row["peak_bytes"] / 1e9, row["memory_by_formula"] / 1e9
        print(f"{row['topology']}, 1b, {row['program']}: {peak:.1f} GB, {paper:.1f} by formula")

apart = [row for row in tiny if row["program"] in ("expert step, shard_map", "expert step, pmap")]
assert not any(sum(row.get("collectives", {}).values()) for row in apart)

# %% [markdown]
# "× 2" are two slices, joined by a slower network. That proves that the programs compile, and what
# they say; it proves no number that they compute, and no speed.
#
# ## 3. The files that start it
#
# An expert is one process, one SLURM task or one pod, and nothing joins experts while they train.
# `python -m dfm_jax launch slurm` and `launch jobset` write what the functions below return; the
# jobs are plain `train` commands.

# %%
folder, here = tempfile.TemporaryDirectory(), Path.cwd()
os.chdir(folder.name)  # what follows is written there
options = ["--config", "small", "--set", "seed=1"]
jobs = launch.train_jobs(Path("parts"), Path("run"), options, experts=range(8), dense=True)
allocation = launch.Allocation(gpus=1, time="04:00:00", at_once=4)
script = launch.slurm_text(jobs, Path("run"), allocation, folder=Path("/shared/project"))
Path("run.sbatch").write_text(script, encoding="utf-8")
assert subprocess.run(["bash", "-n", "run.sbatch"], check=True).returncode == 0

lines = script.splitlines()
print("\n".join([*lines[:17], "…", *lines[-17:]]))

# %%
tpus = {"image": "IMAGE", "claim": "data", "tpus": 4, "accelerator": "tpu-v5-lite-podslice"}
placed = [*options, "--placement", "replicated"]  # over the four chips of its host, not on one
jobs = launch.train_jobs(Path("parts"), Path("run"), placed, experts=range(8), dense=True)
yaml_of_one = launch.jobset_text(jobs, launch.Pods(**tpus, topology="2x2"))
Path("run.yaml").write_text(yaml_of_one, encoding="utf-8")
print("\n".join([*yaml_of_one.splitlines()[:48], "…"]))

words, jobset = yaml.safe_load_all(yaml_of_one)
(job,) = jobset["spec"]["replicatedJobs"]
spec = job["template"]["spec"]
assert words["data"]["jobs_0.sh"].count("set -- train ") == len(jobs)
assert spec["completions"] == len(jobs) == 9
assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 3]

# %% [markdown]
# One JobSet, one index to an expert. The words of the indexes lie in a ConfigMap, because thousands
# of them would be too long for one argument of a process. An expert that spans hosts is one failure
# domain, so it gets a JobSet to itself; within it, and only there, processes join by
# `jax.distributed`.

# %%
spread = ["--placement", "sharded", "--distributed"]
wide = launch.train_jobs(Path("parts"), Path("run"), [*options, *spread], experts=range(8))
documents = list(
    yaml.safe_load_all(launch.jobset_text(wide, launch.Pods(**tpus, topology="2x4", hosts=2)))
)
print(", ".join(one["metadata"]["name"] for one in documents))
assert len(documents) == 8

# %% [markdown]
# ## 4. What a failure does
#
# Three experts, as `python -m dfm_jax launch local --jobs 2` runs them: two of a few documents
# each, and one whose data are missing. The first launch is told to stop, as a scheduler would
# before a preemption, as soon as anyone has saved; the second is the same command again.

# %%
corpora = load_kjv(), load_shakespeare()
for number, corpus in enumerate(corpora):
    part = Path(f"parts/expert_{number:03d}")
    part.mkdir(parents=True)
    for index, document in enumerate(corpus.documents[:60]):
        (part / f"{index:03d}.txt").write_text(document.text, encoding="utf-8")

options = ["--config", "tiny", "--save-every", "25", "--set", "num_steps=300"]
options += ["model.num_layers=1", "held_out=0"]
os.environ["JAX_COMPILATION_CACHE_DIR"] = "cache"  # compiled once, found again
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jobs = launch.train_jobs(Path("parts"), Path("run"), options, experts=range(3))


class Preemption(StopRequest):
    """A signal that comes as soon as a member has saved."""

    @property
    def signal(self):
        return 15 if any(job.step for job in jobs) else None


print("first launch")
first = launch.run_jobs(jobs, Path("run"), at_once=2, stop=Preemption(), say=lambda text: None)
print(launch.summary_text(first))
print("\nthe same again")
second = launch.run_jobs(jobs, Path("run"), at_once=2, say=lambda text: None)
print(launch.summary_text(second))

# %% [markdown]
# Nothing is lost that was saved, nothing is begun twice, and the expert that cannot work is not
# tried again: its status, 2, says that the same would end the same. The others never noticed. What
# the statuses mean, and what is left to mix:

# %%
assert [row.status for row in first] == ["stopped"] * 3
assert [row.status for row in second] == ["finished", "finished", "failed"]
assert [row.step for row in second] == [300, 300, 0]
again = {0: "no", 1: "no", 2: "no", 3: "no", 4: "the launch"}  # all others: yes
for status in ExitStatus:
    name, whether = status.name.lower().replace("_", " "), again.get(status, "yes")
    print(f"{status:>4}  {name:15} begun again: {whether}")

ensemble = make_ensemble(Path("run"))
for expert, weight in zip(ensemble.experts, ensemble.weights, strict=True):
    print(f"{expert.name}: step {expert.step}, {expert.count:,} tokens, w = {weight}")
assert sum(ensemble.weights) == 1
os.chdir(here)
folder.cleanup()

# %% [markdown]
# Any other status, or death by a signal, is followed by another attempt from the last checkpoint,
# as long as each leaves a newer one than there was. `experiments.launching` kills one of four
# experts again and again, in the middle of a save, and compares bits:

# %%
found = launching["summary"]
print(f"{found['kills']} kills with SIGKILL, {found['killed_while_writing']} while writing;")
print(f"arrays that differ of the killed: {found['differing_leaves_of_the_killed']}", end=", ")
print(f"of the others: {found['differing_leaves_of_the_others']}")
assert found["differing_leaves_of_the_killed"] == found["differing_leaves_of_the_others"] == 0

# %% [markdown]
# ## What was not run
#
# A real TPU; a cluster of SLURM or of Kubernetes; a network between hosts. Lowering and compiling
# for TPUs, the syntax of the files, the behavior of processes that stop, fail and resume: these
# were. The pages are in [Run on TPU pods, SLURM, Kubernetes](../docs/guides/pods.md).
#
# ## Try
#
# - `SIZES["1b"]` → a model of yours: what does `num_parameters` say it holds, and on how many
#   chips?
# - Export the sampler, `dfm_jax.sampling.sample_autoregressive`, for `["tpu", "cuda"]` at once.
# - Give the third expert its data and launch again: what happens to the two that have finished?
# - `hosts=4` without `topology`, or a name with capitals: read what `launch.Pods` refuses.
#
# ## Next
#
# Back to [the beginning](1_paths_and_velocities.ipynb), or on to
# [the pages of the studies](../experiments/README.md).
