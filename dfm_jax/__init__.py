"""Decentralized autoregressive generation as discrete flow matching: one function per equation.

These conventions hold everywhere. Time runs from the source, t = 0, to the data, t = 1 (a float),
or in steps 0 … T (an int, a row of a schedule table). Positions count from 0. A mask is the state
with id V; posteriors and logits have V columns; paths, velocities and step distributions S = V or V
+ 1. Losses and logarithms are in nats. Random functions take their key first and use it once.
Functions are written for one example: `jax.vmap` makes the batch; `jax.jit` and the mesh are left
to the caller. Every module is an attribute of `dfm_jax` and is imported when it is first read;
`exact` does not need jax.

    schedules    κ_t and its rate; tables for left-to-right, any order, blocks, masked diffusion
    paths        conditional and marginal probability paths, their posteriors       P1–P7
    velocities   posterior ↔ velocity; forward, backward, corrected                 V1–V9, C1
    steps        discrete time: the exact finite step; autoregression               Q1–Q6, A1–A5
    markov       exact posteriors of Markov data at any length                        P7, S12
    mixture      a flow on all the data as a mixture of flows on its parts; gates   D1–D8, D13, B6
    objectives   the losses that are minimized                                      L1–L5, D9–D12
    samplers     the distributions of the steps of samplers                         S1–S12
    accounting   where an ensemble's loss comes from                                B1–B11, D10, D14
    exact        ground truth by enumeration, in NumPy float64
    boundary     0 log 0, 0 · ∞ and their derivatives
    theory       each statement with its residual and its falsifier
    parallel     runs that share nothing, mapped over devices; the dense model; collectives
    sampling     drawing in any order, by any schedule, velocity or choice             S1–S12
    likelihoods  the likelihood that a model gives a sequence                       L2, L3, L5
    fast         losses and draws arranged for speed
    comparison   two models on the same documents: intervals and verdicts
"""

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from dfm_jax import _renamed
from dfm_jax.training import stopping as _stopping

_stopping.listen("dfm_jax")  # of `python -m dfm_jax`: a Ctrl-C may come while jax is imported
_renamed.install()

if TYPE_CHECKING:
    from dfm_jax import accounting as accounting
    from dfm_jax import allocator as allocator
    from dfm_jax import boundary as boundary
    from dfm_jax import checks as checks
    from dfm_jax import cli as cli
    from dfm_jax import clustering as clustering
    from dfm_jax import comparison as comparison
    from dfm_jax import data as data
    from dfm_jax import durable as durable
    from dfm_jax import exact as exact
    from dfm_jax import fast as fast
    from dfm_jax import interfaces as interfaces
    from dfm_jax import json_text as json_text
    from dfm_jax import json_types as json_types
    from dfm_jax import launch as launch
    from dfm_jax import likelihoods as likelihoods
    from dfm_jax import markov as markov
    from dfm_jax import mixture as mixture
    from dfm_jax import models as models
    from dfm_jax import objectives as objectives
    from dfm_jax import parallel as parallel
    from dfm_jax import partition as partition
    from dfm_jax import paths as paths
    from dfm_jax import samplers as samplers
    from dfm_jax import sampling as sampling
    from dfm_jax import schedules as schedules
    from dfm_jax import scoring as scoring
    from dfm_jax import steps as steps
    from dfm_jax import storage as storage
    from dfm_jax import theory as theory
    from dfm_jax import training as training
    from dfm_jax import types as types
    from dfm_jax import velocities as velocities
else:  # hidden from type checkers, to which it would make any name a module

    def __getattr__(name: str) -> ModuleType:
        if name in _modules():
            return importlib.import_module(f"{__name__}.{name}")
        return _renamed.attribute("", name)


__version__ = "0.2.0.dev0"


def __dir__() -> list[str]:
    return sorted({*globals(), *_modules()})


def _modules() -> set[str]:
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return {name for name in found if not name.startswith("_")}
