"""Who routes: Bayes, fixed-share, static, last-token, centroid, top-k, nucleus, hard.   [D7]

A gate is a law over experts. Those that watch the sequence are states updated token by token, in
log space; those that read features of the context stay as they are along it; those that cut a law
down renormalise.
"""

# Each module's `__all__` says what is public: a new gate is one file.
from dfm_jax.gates.cut import *  # noqa: F403
from dfm_jax.gates.features import *  # noqa: F403
from dfm_jax.gates.running import *  # noqa: F403
