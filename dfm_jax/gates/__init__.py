"""Who routes: Bayes, fixed-share, static, last-token, centroid, top-k, nucleus, hard.   [D7]

A gate is a law over experts. Those that watch the sequence are states updated token by token, in
log space; those that read features of the context stay as they are along it; those that cut a law
down renormalise.
"""

from dfm_jax.gates.cut import hard_gate, nucleus_gate, top_k_gate
from dfm_jax.gates.features import FittedTemperature, centroid_gate, fit_temperature
from dfm_jax.gates.running import (
    GateState,
    bayes_gate,
    bayes_gate_update,
    fixed_share_gate,
    fixed_share_update,
    gate_init,
    last_token_gate,
    static_gate,
)

__all__ = [
    "FittedTemperature",
    "GateState",
    "bayes_gate",
    "bayes_gate_update",
    "centroid_gate",
    "fit_temperature",
    "fixed_share_gate",
    "fixed_share_update",
    "gate_init",
    "hard_gate",
    "last_token_gate",
    "nucleus_gate",
    "static_gate",
    "top_k_gate",
]
