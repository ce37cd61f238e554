"""partition and route: a data set dealt to experts, and new rows after it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Part a data set of conversations among experts, by features of its rows.

    The folder holds expert_000/rows.jsonl and so on, with the rows as they were; centre.jsonl, with
    the same rows in their order; unrouted.jsonl; centroids.npz; and manifest.json.

    For example:

        python -m dfm_jax partition --input rows.jsonl --features rows.npy --num-experts 6 --out dir
    """

    input: Path
    """JSONL, or a JSON array, of objects with `id`, `image` and `conversations`."""
    features: Path
    """.npy [R, D], a feature a row; or .npz with `features` and the `rows` that they are of."""
    num_experts: int
    """The number of parts."""
    out: Path
    """A folder to make; one that is finished with the same settings and inputs is left alone."""
    balance: Literal["rows", "tokens", "none"] = "rows"
    """What the experts get equally much of."""
    seed: int = 0
    """Of the clustering."""
    weights: Path | None = None
    """.npy [R], the tokens of each row; by default the bytes of what is said in it."""
    no_feature: Literal["unrouted", "spread"] = "unrouted"
    """What becomes of rows without a feature; spread: any expert, the larger the likelier."""
    unique_ids: bool = False
    """Refuse rows without an id of their own."""

    def run(self) -> int:
        """Write the folder, or say that it is there."""
        from dfm_jax.data.partition import write_partition

        return _show_written(self.out, *write_partition(**vars(self)))


@dataclass(frozen=True, kw_only=True)
class Route:
    """Deal new rows to the experts of a partition, and write the same layout; nothing is balanced.

    For example:

        python -m dfm_jax route --input new.jsonl --features new.npy --partition dir --out new
    """

    input: Path
    """JSONL, or a JSON array, of objects with `id`, `image` and `conversations`."""
    features: Path
    """Of the new rows, from the same encoder: .npy or .npz."""
    partition: Path
    """The folder that `partition` wrote."""
    out: Path
    """A folder to make; one that is finished with the same settings and inputs is left alone."""
    weights: Path | None = None
    """.npy [R], the tokens of each row, if the partition was made with such."""
    no_feature: Literal["unrouted", "spread"] = "unrouted"
    """What becomes of rows without a feature; spread: any expert, the larger the likelier."""
    unique_ids: bool = False
    """Refuse rows without an id of their own."""

    def run(self) -> int:
        """Write the folder, or say that it is there."""
        from dfm_jax.data.partition import write_routed

        return _show_written(self.out, *write_routed(**vars(self)))


def _show_written(out: Path, manifest: dict, found: bool) -> int:
    if found:
        print(f"{out} is finished already, with these settings and inputs; nothing was done.")
        return 0
    print(f"{'expert':>8}{'rows':>12}{'load':>16}")
    for k, (size, load) in enumerate(zip(manifest["sizes"], manifest["token_loads"], strict=True)):
        print(f"{k:>8}{size:>12,}{load:>16,}")
    print(
        f"\n{out}: {manifest['num_rows']:,} rows, of them {manifest['spread']:,} spread and "
        f"{manifest['unrouted']:,} unrouted; {manifest['repeated_ids']:,} repeat an id, "
        f"{manifest['rows_without_id']:,} have none."
    )
    return 0
