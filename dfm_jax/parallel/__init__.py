"""The mesh; work that shares nothing, mapped over devices; the one program that communicates.

Experts, seeds and hyper-parameters are one idea: independent runs along a leading axis, cut over
the devices of a mesh, and no device ever talks to another's. The dense model is one run over all of
the devices, and talks at every step. Which program does what is read off its compiled form.
"""

from dfm_jax.parallel.collectives import Collective as Collective
from dfm_jax.parallel.collectives import collectives as collectives
from dfm_jax.parallel.collectives import count_by_kind as count_by_kind
from dfm_jax.parallel.dense import Placement as Placement
from dfm_jax.parallel.dense import sharded_step as sharded_step
from dfm_jax.parallel.dense import state_shardings as state_shardings
from dfm_jax.parallel.independent import independent as independent
from dfm_jax.parallel.independent import make_mesh as make_mesh
