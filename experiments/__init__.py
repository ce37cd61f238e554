"""One file per study: its config, its sweep, the table it prints, the figure it draws."""

from dfm_jax.training import stopping as _stopping

_stopping.listen("experiments")  # of `python -m experiments.NAME`
