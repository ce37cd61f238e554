"""The mesh; independent runs, mapped over devices; and the one program that communicates.

Experts, seeds and hyper-parameters are handled in the same way: as independent runs along a leading
axis, which is split over the devices of a mesh. The devices of different runs never communicate.
The dense model is one run over all devices, and it communicates at every step. The compiled form of
a program shows which collectives it has.
"""

from dfm_jax.parallel.collectives import Collective as Collective
from dfm_jax.parallel.collectives import collectives as collectives
from dfm_jax.parallel.collectives import count_by_kind as count_by_kind
from dfm_jax.parallel.dense import Placement as Placement
from dfm_jax.parallel.dense import gathered_layer as gathered_layer
from dfm_jax.parallel.dense import gathers_layers as gathers_layers
from dfm_jax.parallel.dense import sharded_step as sharded_step
from dfm_jax.parallel.dense import state_shardings as state_shardings
from dfm_jax.parallel.independent import faster_in_turn as faster_in_turn
from dfm_jax.parallel.independent import independent as independent
from dfm_jax.parallel.independent import make_mesh as make_mesh
