"""The peers of samplers, mixtures and draws in `benchmarks`."""

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from experiments.systems.benchmarks.serving import Case
from experiments.systems.benchmarks.torch_network import NUM_HEADS, NUM_LAYERS, WIDTH, Network


def mixture_path():
    """κ_t = t."""
    from flow_matching.path import (  # pyright: ignore[reportMissingImports]
        MixtureDiscreteProbPath,
    )
    from flow_matching.path.scheduler import (  # pyright: ignore[reportMissingImports]
        PolynomialConvexScheduler,
    )

    return MixtureDiscreteProbPath(scheduler=PolynomialConvexScheduler(n=1.0))


def counted(drawn):
    """The numbers of tokens by their remainder modulo 16."""
    return np.bincount(drawn.numpy().reshape(-1) % 16, minlength=16).tolist()


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


def masked_model(size, data):
    """A run from masks with a model; the mask is one more token."""
    size = size | {"V": size["V"] + 1}
    return euler_model(size, data)


def gpt2(size):
    """GPT-2 of our width and depth, with random weights."""
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
    return GPT2LMHeadModel(config).eval()


def autoregressive(size, data):
    """Draw the same number of new tokens for every row, with a cache."""
    model, prompts = gpt2(size), data["prompts"]
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


def mixture_with_cache(size, data):
    """Draw from K models with their caches; the weights are updated by each token."""
    models = [gpt2(size) for _ in range(size["K"])]

    def run():
        with torch.inference_mode():
            tokens, drawn = data["prompts"], []
            caches = [None] * size["K"]
            log_weights = torch.log_softmax(torch.zeros(size["K"], len(tokens)), 0)
            for _ in range(size["new"]):
                rows = []
                for k, model in enumerate(models):
                    found = model(tokens, past_key_values=caches[k], use_cache=True)
                    caches[k] = found.past_key_values
                    rows.append(torch.log_softmax(found.logits[:, -1], -1))
                log_probs = torch.stack(rows)
                mixed = torch.logsumexp(log_probs + log_weights[..., None], 0)
                tokens = torch.multinomial(mixed.exp(), 1)
                at = tokens.expand(size["K"], -1, 1)
                told = torch.gather(log_probs, 2, at)[..., 0]
                log_weights = torch.log_softmax(log_weights + told, 0)
                drawn.append(tokens)
            return torch.cat(drawn, 1)

    return {"K of transformers, mixed by hand": Case(run)}


# ── mixtures, draws ─────────────────────────────────────────────────────────────────────────────


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


def categorical(size, data):
    """Draw one token for each row."""

    def run():
        return torch.multinomial(torch.softmax(data["logits"], -1), 1)

    return {"torch": Case(run, counted)}


WORKLOADS = {
    "Euler without its model": euler_alone,
    "Euler with a model": euler_model,
    "AR sampling with cache": autoregressive,
    "mixture of K with cache": mixture_with_cache,
    "masked diffusion with a model": masked_model,
    "mixture of K experts": mixture,
    "categorical draw": categorical,
}
