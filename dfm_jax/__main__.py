"""python -m dfm_jax."""

from dfm_jax.cli import main

raise SystemExit(main())
