"""gather: the trained experts of a run as one ensemble."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Gather:
    """Gather the trained experts of a run into an ensemble: RUN/ensemble.json.

    It names every expert's checkpoint by its hash, and its weight, the share of training tokens, as
    an exact fraction. An expert added, retrained or taken away: gather again.

    For example:

        python -m dfm_jax gather --run run
    """

    folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of the run."""
    without: tuple[str, ...] = ()
    """Experts to leave out, by name."""
    checkpoint: Literal["last", "best"] = "last"
    """Best: of the lowest validation loss among those kept."""

    def run(self) -> int:
        """Write the manifest and print it."""
        from dfm_jax.json_types import as_type
        from dfm_jax.training.ensemble import MANIFEST, gather, write_ensemble

        best = self.checkpoint == "best"
        ensemble = gather(self.folder, best=best, without=self.without)
        write_ensemble(self.folder / MANIFEST, ensemble)
        print(f"{'expert':<12}{'step':>9}{'of':>9}{'tokens':>14}{'weight':>9}  sha256")
        for expert, weight in zip(ensemble.experts, ensemble.weights, strict=True):
            whole = as_type(int, expert.config["config"].get("num_steps"), "config.num_steps")
            print(
                f"{expert.name:<12}{expert.step:>9,}{whole:>9,}{expert.count:>14,}"
                f"{float(weight):>9.4f}  {expert.sha256[:16]}…"
            )
        return 0
