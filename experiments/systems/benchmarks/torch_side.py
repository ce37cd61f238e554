"""The peers of `benchmarks`, by their public interfaces: flow_matching, PyTorch and others.

    PYTHON -P experiments/systems/benchmarks/torch_side.py THREADS

`benchmarks` runs it in an environment that has these packages; it imports nothing of `dfm_jax`.
k-means-constrained and faiss start from their own random draws, as our side does, and draw again at
every call. The auction of the paper's code is not a package and is not measured.
"""

import sys
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

# -P: its own folder is not searched for modules, and the checkout is.
sys.path.append(str(Path(__file__).parents[3]))
from experiments.systems.benchmarks.serving import Case, serve
from experiments.systems.benchmarks.torch_network import NUM_HEADS, NUM_LAYERS, WIDTH, Network


def prepare(workload, size, arrays):
    """All peers of a workload at a size."""
    data = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return WORKLOADS[workload](size, data)


def mixture_path():
    """κ_t = t."""
    from flow_matching.path import (  # pyright: ignore[reportMissingImports]
        MixtureDiscreteProbPath,
    )
    from flow_matching.path.scheduler import (  # pyright: ignore[reportMissingImports]
        PolynomialConvexScheduler,
    )

    return MixtureDiscreteProbPath(scheduler=PolynomialConvexScheduler(n=1.0))


# ── paths, losses, draws ────────────────────────────────────────────────────────────────────────


def path_sampling(size, data):
    """Draw x_t for each row at its own time."""
    path = mixture_path()

    def shown(x_t):
        moved = x_t.numpy().reshape(-1, 8, size["N"]) >= 500
        return [*moved.sum((0, 2)).tolist(), *(~moved).sum((0, 2)).tolist()]

    def run():
        return path.sample(x_0=data["x_0"], x_1=data["x_1"], t=data["kappa"]).x_t

    return {"flow_matching": Case(run, shown)}


def differentiated(logits, loss, x_1):
    """A loss of the logits and its gradient."""
    logits = logits.requires_grad_()
    rows = torch.arange(0, x_1.numel(), 37)

    def run():
        logits.grad = None
        value = loss(logits)
        value.backward()
        return value.item()

    def shown(value):
        flat = logits.grad.reshape(x_1.numel(), -1)
        return [[value], flat[rows, x_1.reshape(-1)[rows]].tolist()]

    return Case(run, shown)


def generalized_kl(size, data):
    """Forward and backward."""
    from flow_matching.loss import (  # pyright: ignore[reportMissingImports]
        MixturePathGeneralizedKL,
    )

    loss = MixturePathGeneralizedKL(path=mixture_path())

    def value(logits):
        return loss(logits=logits, x_1=data["x_1"], x_t=data["x_t"], t=data["t"])

    return {"flow_matching": differentiated(data["logits"], value, data["x_1"])}


def cross_entropy(size, data):
    """Forward and backward."""
    targets = data["x_1"].reshape(-1)

    def value(logits):
        return F.cross_entropy(logits.reshape(-1, size["V"]), targets)

    return {"torch": differentiated(data["logits"], value, data["x_1"])}


def counted(drawn):
    """The numbers of tokens by their remainder modulo 16."""
    return np.bincount(drawn.numpy().reshape(-1) % 16, minlength=16).tolist()


def categorical(size, data):
    """Draw one token for each row."""

    def run():
        return torch.multinomial(torch.softmax(data["logits"], -1), 1)

    return {"torch": Case(run, counted)}


# ── samplers ────────────────────────────────────────────────────────────────────────────────────


def euler(size, data, probs):
    """A run from t = 0 to 1 under `probs(x, t)`, probabilities of every position."""
    from flow_matching.solver import (  # pyright: ignore[reportMissingImports]
        MixtureDiscreteEulerSolver,
    )
    from flow_matching.utils import ModelWrapper  # pyright: ignore[reportMissingImports]

    class Wrapped(ModelWrapper):
        def forward(self, x, t, **extras):
            return probs(x, t)

    solver = MixtureDiscreteEulerSolver(
        model=Wrapped(None), path=mixture_path(), vocabulary_size=size["V"]
    )

    def run():
        with torch.no_grad():
            return solver.sample(x_init=data["x_0"], step_size=1 / size["T"])

    return run


def euler_alone(size, data):
    """A run with a given posterior."""
    probs = torch.softmax(data["logits"], -1)
    return {"flow_matching": Case(euler(size, data, lambda x, t: probs), counted)}


def euler_model(size, data):
    """A run with a model; its weights are random, because only shapes matter."""
    model = Network(size["V"], size["N"]).eval()
    return {"flow_matching": Case(euler(size, data, lambda x, t: model(x).softmax(-1)))}


def autoregressive(size, data):
    """Draw the same number of new tokens for every row, with a cache."""
    from transformers import (  # pyright: ignore[reportMissingImports]
        GPT2Config,
        GPT2LMHeadModel,
    )

    config = GPT2Config(
        vocab_size=size["V"],
        n_positions=size["new"] + 1,
        n_embd=WIDTH,
        n_layer=NUM_LAYERS,
        n_head=NUM_HEADS,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    prompts = data["prompts"]
    count = {"max_new_tokens": size["new"], "min_new_tokens": size["new"]}

    def run():
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            use_cache=True,
            pad_token_id=0,
            **count,
        )

    return {"transformers GPT-2": Case(run)}


# ── clusters and mixtures ───────────────────────────────────────────────────────────────────────


def mean_cosine(features, labels):
    """The mean cosine of each row with the mean direction of its cluster."""
    sums = np.zeros((labels.max() + 1, features.shape[1]))
    np.add.at(sums, labels, features)
    return float(np.linalg.norm(sums, axis=1).sum() / len(features))


def balanced(size, data):
    """Sizes ⌊R/K⌋ or ⌈R/K⌉; rows have length 1, so that distances are cosines."""
    from k_means_constrained import (  # pyright: ignore[reportMissingImports]
        KMeansConstrained,
    )

    features = data["features"].numpy()
    least = size["R"] // size["K"]

    def run():
        model = KMeansConstrained(
            n_clusters=size["K"],
            size_min=least,
            size_max=-(-size["R"] // size["K"]),
            n_init=1,
            max_iter=100,
        )
        return model.fit_predict(features)

    return {"k-means-constrained": Case(run, lambda labels: mean_cosine(features, labels))}


def fine(size, data):
    """Ten passes and a last assignment."""
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(torch.get_num_threads())
    features = data["features"].numpy()
    count = 0

    def run():
        nonlocal count
        count += 1
        model = faiss.Kmeans(
            features.shape[1],
            size["K"],
            niter=10,
            spherical=True,
            seed=count,
            max_points_per_centroid=size["R"],
        )
        model.train(features)
        return model.index.search(features, 1)[1][:, 0]

    return {"faiss": Case(run, lambda labels: mean_cosine(features, labels))}


def mixture(size, data):
    """log Σ_k r_k softmax_k(v), as it runs and compiled."""

    def mixed(log_weights, logits):
        return torch.logsumexp(torch.log_softmax(logits, -1) + log_weights[:, None, None], 0)

    def shown(log_probs):
        return [log_probs[:, ::509].reshape(-1).tolist()]

    def case(function):
        return Case(lambda: function(data["log_weights"], data["logits"]), shown)

    # Of a second size PyTorch would else compile a program for all sizes, which is slower.
    compiled = torch.compile(mixed, dynamic=False)
    return {"torch": case(mixed), "torch.compile": case(compiled)}


WORKLOADS = {
    "path sampling": path_sampling,
    "generalized KL": generalized_kl,
    "cross-entropy": cross_entropy,
    "Euler without its model": euler_alone,
    "Euler with a model": euler_model,
    "AR sampling with cache": autoregressive,
    "balanced k-means": balanced,
    "fine k-means": fine,
    "mixture of K experts": mixture,
    "categorical draw": categorical,
}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    serve(prepare)
