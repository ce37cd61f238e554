"""The statements, with one file for each subject; importing them adds them to the ledger."""

from dfm_jax.theory.statements import accounting as accounting
from dfm_jax.theory.statements import autoregression as autoregression
from dfm_jax.theory.statements import bounds as bounds
from dfm_jax.theory.statements import choices as choices
from dfm_jax.theory.statements import cost as cost
from dfm_jax.theory.statements import decentral as decentral
from dfm_jax.theory.statements import drawn_experts as drawn_experts
from dfm_jax.theory.statements import experts as experts
from dfm_jax.theory.statements import gates as gates
from dfm_jax.theory.statements import jumps as jumps
from dfm_jax.theory.statements import objectives as objectives
from dfm_jax.theory.statements import paths as paths
from dfm_jax.theory.statements import posteriors as posteriors
from dfm_jax.theory.statements import rates as rates
from dfm_jax.theory.statements import routers as routers
from dfm_jax.theory.statements import routing as routing
from dfm_jax.theory.statements import samplers as samplers
from dfm_jax.theory.statements import steps as steps
from dfm_jax.theory.statements import velocities as velocities
