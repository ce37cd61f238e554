"""Studies, one package each: config, measurements, tables and a figure."""

from pathlib import Path

from dfm_jax.training import stopping as _stopping

_stopping.listen("experiments")  # of `python -m experiments.NAME`
__path__.append(str(Path(__file__).with_name("systems")))  # for `python -m experiments.scaling`
