#!/usr/bin/env bash
# flow_matching: MixtureDiscreteEulerSolver with step_size=1/49 calls the model 50 times, the last
# time at t = 1.
#
# One would guess that a step size of 1/n takes n calls, at t = 0, 1/n, …, 1 − 1/n.
# What happens: the number of steps is the ceiling of 1 / step_size in floating point. 1 / (1/49) is a
# little above 49, so there are 50 steps; the last has almost no length, and the model is asked at
# t = 1. For 48 and 50 all is as guessed.
# Who is hurt: a model that divides by 1 − t gets a division by 0; a comparison by the number of calls
# is off by one. (dfm_jax takes the number of steps, not their size.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# Its solver imports tqdm, which the package does not declare.
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check flow-matching==1.0.10 torch==2.13.0 tqdm==4.70.1
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from flow_matching.path import MixtureDiscreteProbPath
from flow_matching.path.scheduler import PolynomialConvexScheduler
from flow_matching.solver import MixtureDiscreteEulerSolver
from flow_matching.utils import ModelWrapper

print("flow_matching", version("flow_matching"), "torch", torch.__version__)


def times(number):
    calls = []

    class Uniform(ModelWrapper):
        def forward(self, x, t, **extras):
            calls.append(t[0].item())
            return torch.full((*x.shape, 2), 0.5)

    path = MixtureDiscreteProbPath(scheduler=PolynomialConvexScheduler(n=1.0))
    solver = MixtureDiscreteEulerSolver(model=Uniform(None), path=path, vocabulary_size=2)
    solver.sample(x_init=torch.zeros(4, 3, dtype=torch.long), step_size=1 / number)
    return calls


for number in (48, 49, 50):
    calls = times(number)
    print(f"step_size=1/{number}: {len(calls)} calls, the last at t = {calls[-1]:.6f}")
    extra = number == 49
    assert len(calls) == number + extra and (calls[-1] > 0.999) == extra, "this has changed"
PYTHON
