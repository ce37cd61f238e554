"""The samplers of other packages under exact denoisers, in their environment: counts of samples.

    python -m experiments.samplers.peer_side < options.json > counts.json

It is started by `experiments.samplers`. Each package draws with its own code; only the denoiser,
the exact posterior of the source, is ours.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from experiments.samplers.sources import Short, uniform_path, uniform_posterior

Row = dict[str, Any]


class Side(NamedTuple):
    """A source, its tables for every state, and what is drawn from it."""

    source: Short
    num_draws: int
    generator: torch.Generator

    @property
    def v(self) -> int:
        """The number of tokens."""
        return self.source.num_tokens

    @property
    def n(self) -> int:
        """The number of positions."""
        return self.source.num_positions

    def masks(self) -> torch.Tensor:
        """Masks alone: [draws, N]."""
        return torch.full((self.num_draws, self.n), self.v)

    def noise(self) -> torch.Tensor:
        """Uniform tokens: [draws, N]."""
        return torch.randint(0, self.v, (self.num_draws, self.n), generator=self.generator)

    def draws_of(self, probs: np.ndarray) -> torch.Tensor:
        """Exact draws of a distribution of sequences: [draws, N]."""
        at = torch.multinomial(
            torch.from_numpy(probs), self.num_draws, replacement=True, generator=self.generator
        )
        return torch.from_numpy(self.source.draws)[at]

    def counted(self, drawn: torch.Tensor) -> Row:
        """How often each sequence was drawn, and the share that has a mask left."""
        found = drawn.numpy()
        whole = (found < self.v).all(axis=1)
        radix = self.v ** np.arange(self.n)[::-1]
        counts = np.bincount(found[whole] @ radix, minlength=self.v**self.n)
        return {"counts": counts.tolist(), "unfinished": float(1 - whole.mean())}


def looked_up(table: np.ndarray, base: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A denoiser: the row of the table for each state [draws, N] → [draws, N, V]."""
    rows = torch.from_numpy(table)

    def denoiser(states: torch.Tensor) -> torch.Tensor:
        radix = torch.from_numpy(base ** np.arange(states.shape[1])[::-1].copy())
        return rows[states @ radix]

    return denoiser


# ── diffusers ───────────────────────────────────────────────────────────────────────────────────


def block_refinement(side: Side) -> Iterator[Row]:
    """The most confident draws are committed, so many a step, or all above the threshold."""
    from diffusers import BlockRefinementScheduler  # pyright: ignore[reportMissingImports]

    probs = looked_up(side.source.posterior(), side.v + 1)
    for steps, threshold in ((side.n, 1.0), (side.n, 0.95), (side.n // 2, 1.0)):
        scheduler = BlockRefinementScheduler(block_length=side.n)
        scheduler.set_timesteps(steps, block_length=side.n)
        x = side.masks()
        for step in range(steps):
            x = scheduler.step(
                probs(x).log(),
                step,
                x,
                mask_token_id=side.v,
                temperature=1.0,
                threshold=threshold,
                generator=side.generator,
            ).prev_sample
        options = {"steps": steps, "options": f"threshold {threshold:g}, temperature 1"}
        yield {"sampler": "BlockRefinementScheduler", **options, **side.counted(x)}


def amused(side: Side) -> Iterator[Row]:
    """The least confident draws are masked again, with noise on the confidence that is annealed."""
    from diffusers import AmusedScheduler  # pyright: ignore[reportMissingImports]

    probs = looked_up(side.source.posterior(), side.v + 1)
    for steps, noise in ((4, (2, 0)), (12, (2, 0)), (4, (0, 0))):
        scheduler = AmusedScheduler(mask_token_id=side.v)
        scheduler.set_timesteps(steps, temperature=noise)
        x = side.masks()
        for t in scheduler.timesteps:
            logits = probs(x).log().float()
            x = scheduler.step(logits, t, x, generator=side.generator).prev_sample
        options = {"steps": steps, "options": f"noise {noise[0]} to {noise[1]}"}
        yield {"sampler": "AmusedScheduler", **options, **side.counted(x)}


def entropy_bound(side: Side) -> Iterator[Row]:
    """The lowest entropies are accepted and all else gets new noise, the last time too."""
    from diffusers import EntropyBoundScheduler  # pyright: ignore[reportMissingImports]

    for steps in (16, 48):
        scheduler = EntropyBoundScheduler(t_max=1.0, t_min=1.0, num_inference_steps=steps)
        scheduler.set_timesteps(steps)
        x = side.noise()
        for step in range(steps):
            probs = looked_up(uniform_posterior(side.source, step / steps), side.v)
            out = scheduler.step(probs(x).log(), step, x, generator=side.generator)
            x = out.prev_sample
        for what, drawn in (("prev_sample", x), ("sampled_tokens", out.sampled_tokens)):
            options = {"steps": steps, "options": f"γ 0.1, temperature 1, {what}"}
            yield {"sampler": "EntropyBoundScheduler", **options, **side.counted(drawn)}


def discrete_ddim(side: Side) -> Iterator[Row]:
    """The exact finite step of a uniform source, all positions at once."""
    from diffusers import DiscreteDDIMScheduler  # pyright: ignore[reportMissingImports]

    for steps in (4, 16, 48, 49, 50, 64):
        scheduler = DiscreteDDIMScheduler(num_inference_steps=steps)
        scheduler.set_timesteps(steps)
        x = side.noise()
        for step in range(steps):
            probs = looked_up(uniform_posterior(side.source, step / steps), side.v)
            logits = probs(x).log()
            x = scheduler.step(logits, step, x, temperature=1.0, generator=side.generator)
            x = x.prev_sample
        options = {"steps": steps, "options": "temperature 1"}
        yield {"sampler": "DiscreteDDIMScheduler", **options, **side.counted(x)}


SWEEPS = (1, 5, 20)
SELECTIONS = ("lowest_log_margin", "lowest_maxprob", "lowest_current_prob", "random")


def correctors(side: Side) -> Iterator[Row]:
    """Sweeps of the corrector from exact draws of p_t, which they ought to keep."""
    from diffusers import DiscreteDDIMScheduler  # pyright: ignore[reportMissingImports]

    steps, step = 16, 7  # α = ½
    path = uniform_path(side.source, (step + 1) / steps).sum(axis=1)
    probs = looked_up(uniform_posterior(side.source, (step + 1) / steps), side.v)
    for selection in SELECTIONS:
        scheduler = DiscreteDDIMScheduler(
            num_inference_steps=steps, corrector_steps=1, corrector_selection=selection
        )
        scheduler.set_timesteps(steps)
        x = side.draws_of(path)
        for sweep in range(1, max(SWEEPS) + 1):
            logits = probs(x).log()
            x = scheduler.step_correct(logits, step, x, generator=side.generator).prev_sample
            if sweep in SWEEPS:
                yield {
                    "sampler": "DiscreteDDIMScheduler.step_correct",
                    "steps": sweep,
                    "options": f"{selection}, from p_t at κ = ½",
                    "expected": path.tolist(),
                    **side.counted(x),
                }


# ── flow_matching ───────────────────────────────────────────────────────────────────────────────


def euler(side: Side) -> Iterator[Row]:
    """Euler's steps of a mixture path, from masks and from uniform tokens."""
    runs = [
        (name, steps, 1.0) for name in ("masks", "uniform") for steps in (4, 16, 48, 49, 50, 64)
    ]
    runs += [(name, 16, power) for name in ("masks", "uniform") for power in (0.5, 2.0)]
    for name, steps, power in runs:
        row = {"sampler": "MixtureDiscreteEulerSolver", "steps": steps}
        options = f"{name}, κ = t^{power:g}"
        try:
            x, calls = _euler(side, name == "masks", steps, power)
        except RuntimeError as error:  # an infinite rate at t = 0
            yield row | {"options": options, "counts": None, "raised": f"{error}".splitlines()[0]}
            continue
        last = f"{len(calls)} calls, the last at t = {calls[-1]:.6g}"
        yield row | {"options": f"{options}, {last}", **side.counted(x)}


def _euler(side: Side, masked: bool, steps: int, power: float) -> tuple[torch.Tensor, list[float]]:
    from flow_matching.path import (  # pyright: ignore[reportMissingImports]
        MixtureDiscreteProbPath,
    )
    from flow_matching.path.scheduler import (  # pyright: ignore[reportMissingImports]
        PolynomialConvexScheduler,
    )
    from flow_matching.solver import (  # pyright: ignore[reportMissingImports]
        MixtureDiscreteEulerSolver,
    )
    from flow_matching.utils import ModelWrapper  # pyright: ignore[reportMissingImports]

    calls: list[float] = []
    by_mask = looked_up(
        np.pad(side.source.posterior(), ((0, 0), (0, 0), (0, 1))), side.v + 1
    )  # the mask is one more token, of probability 0

    class Exact(ModelWrapper):
        def forward(self, x: torch.Tensor, t: torch.Tensor, **extras: Any) -> torch.Tensor:
            calls.append(float(t[0]))
            if masked:
                return by_mask(x).float()
            alpha = min(float(t[0]) ** power, 1.0)
            return looked_up(uniform_posterior(side.source, alpha), side.v)(x).float()

    torch.manual_seed(int(torch.randint(0, 2**31, (1,), generator=side.generator)))
    path = MixtureDiscreteProbPath(scheduler=PolynomialConvexScheduler(n=power))
    size = side.v + 1 if masked else side.v
    solver = MixtureDiscreteEulerSolver(model=Exact(None), path=path, vocabulary_size=size)
    start = side.masks() if masked else side.noise()
    return solver.sample(x_init=start, step_size=1 / steps), calls


def drawn_exactly(side: Side) -> Iterator[Row]:
    """Draws of the data themselves: the noise of so many draws."""
    options = {"steps": 0, "options": "draws of the data, for the noise"}
    yield {"sampler": "none", **options, **side.counted(side.draws_of(side.source.probs))}


PACKAGES: dict[str, tuple[Callable[[Side], Iterator[Row]], ...]] = {
    "": (drawn_exactly,),
    "diffusers": (block_refinement, amused, entropy_bound, discrete_ddim, correctors),
    "flow_matching": (euler,),
}


def main() -> None:
    """Read the sources from standard input, run every sampler, and write the counts."""
    given = json.load(sys.stdin)
    rows = []
    for spec in given["sources"]:
        source = Short(
            spec["name"], spec["num_tokens"], spec["num_positions"], np.array(spec["probs"])
        )
        side = Side(source, given["num_draws"], torch.Generator().manual_seed(given["seed"]))
        for package, samplers in PACKAGES.items():
            for sampler in samplers:
                for row in sampler(side):
                    rows.append({"package": package, "source": source.name, **row})
                print(f"{source.name}: {package} {sampler.__name__}", file=sys.stderr, flush=True)
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
