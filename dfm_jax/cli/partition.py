"""The commands partition and route: they assign a data set, and later new rows, to experts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.cli.arguments import KeepBuffers


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Partition a data set among experts, by features of its rows.

    The features are your own (--features), or those of an encoder (--encoder). The command writes a
    folder. In it, expert_000/rows.jsonl and so on hold the rows of each expert, unchanged;
    dense.jsonl holds the same rows in their first order; unrouted.jsonl and random.jsonl hold the
    rows that have no feature, with the reason; centroids.safetensors holds the centroids;
    manifest.json holds counts, statistics and hashes.

    For example:

        python -m dfm_jax partition --input rows.jsonl --features rows.npy --num-experts 6 --out dir

        python -m dfm_jax partition --input rows.jsonl --encoder efficientnet --images photos
        --cache seen --num-experts 6 --balance tokens --out dir

        python -m dfm_jax partition --input texts --encoder tfidf --num-experts 4 --out dir
    """

    input: Path
    """The rows: a JSONL file or JSON array of `id`, `image`, `conversations`, or a folder of text
    in which each file is a row."""
    num_experts: int
    """The number K of experts."""
    out: Path
    """The folder to make; a finished folder of the same settings and inputs is left alone."""
    features: Path | None = None
    """Your own features: an .npy array [R, D], one row each, or an .npz file of `features` and
    their `rows`; repeated rows are averaged."""
    encoder: Literal["efficientnet", "clip", "tfidf"] | None = None
    """The encoder of the rows. efficientnet and clip read the images of a row; tfidf reads its
    first human turn without the answer, or a whole file."""
    clip: str | None = None
    """For clip: the Hugging Face folder of a CLIP, or org/name; its projected image feature is
    used."""
    images: Path | None = None
    """For efficientnet and clip: the folder to which the paths in `image` are relative."""
    cache: Path | None = None
    """For efficientnet and clip: a folder that keeps the features, so that no image is encoded
    twice."""
    num_features: int | None = None
    """For tfidf: the number of directions that are kept; the default is 64."""
    balance: Literal["rows", "tokens", "none"] = "rows"
    """What is divided equally among the experts."""
    num_fine: int | None = None
    """The number of fine clusters to make first; whole fine clusters are then assigned to the
    experts."""
    restarts: int = 1
    """The number of times the clustering starts anew; the best result is kept, and the manifest
    says how far the results agree."""
    seed: int = 0
    """The seed of the clustering and of tfidf."""
    weights: Path | None = None
    """The number of tokens of each row, as an .npy array [R]; by default the number of bytes of its
    text."""
    no_feature: Literal["unrouted", "random"] = "unrouted"
    """What happens to a row without a feature; `random` sends it to an expert drawn at random, in
    proportion to the experts' sizes."""
    unique_ids: bool = False
    """Refuse rows that have no id of their own."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Write the folder, or print that it is there already."""
        from dfm_jax.partition import Source, write_partition

        options = vars(self).copy()
        del options["keep_buffers"]  # `main` has read it
        source = Source(**{name: options.pop(name) for name in Source._fields})
        return _show_written(self.out, *write_partition(source=source, **options))


@dataclass(frozen=True, kw_only=True)
class Route:
    """Assign new rows to the experts of a partition, and write the same layout.

    The sizes are not balanced. The features come from the encoder of the partition; if that was
    made with --features, this command needs --features too.

    For example:

        python -m dfm_jax route --input new.jsonl --features new.npy --partition dir --out new

        python -m dfm_jax route --input new.jsonl --images photos --partition dir --out new
    """

    input: Path
    """The rows: a JSONL file or JSON array of `id`, `image`, `conversations`, or a folder of text
    in which each file is a row."""
    partition: Path
    """The folder that `partition` wrote."""
    out: Path
    """The folder to make; a finished folder of the same settings and inputs is left alone."""
    features: Path | None = None
    """An .npy or .npz file of features of the new rows, from the encoder that made the old ones."""
    clip: str | None = None
    """For clip: the folder of the CLIP that made the old features, or org/name."""
    images: Path | None = None
    """For efficientnet and clip: the folder to which the paths in `image` are relative."""
    cache: Path | None = None
    """For efficientnet and clip: a folder that keeps the features, so that no image is encoded
    twice."""
    weights: Path | None = None
    """The number of tokens of each row, as an .npy array [R], if the partition was made with such a
    file."""
    no_feature: Literal["unrouted", "random"] = "unrouted"
    """What happens to a row without a feature; `random` sends it to an expert drawn at random, in
    proportion to the experts' sizes."""
    unique_ids: bool = False
    """Refuse rows that have no id of their own."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Write the folder, or print that it is there already."""
        from dfm_jax.partition import Source, write_routed

        options = vars(self).copy()
        del options["keep_buffers"]  # `main` has read it
        source = Source(**{name: options.pop(name) for name in _OF_SOURCE})
        return _show_written(self.out, *write_routed(source=source, **options))


_OF_SOURCE = ("features", "images", "cache", "clip")  # what new rows need, too


def _show_written(out: Path, manifest: dict, found: bool) -> int:
    from dfm_jax.data.columns import unused_text

    if found:
        print(f"{out} is finished already, with these settings and inputs; nothing was done.")
        return 0
    print(f"{'expert':>8}{'rows':>12}{'load':>16}")
    for k, (size, load) in enumerate(zip(manifest["sizes"], manifest["token_loads"], strict=True)):
        print(f"{k:>8}{size:>12,}{load:>16,}")
    print(
        f"\n{out}: {manifest['num_rows']:,} rows, of them {manifest['random']:,} at random and "
        f"{manifest['unrouted']:,} unrouted; {manifest['repeated_ids']:,} repeat an id, "
        f"{manifest['rows_without_id']:,} have none."
    )
    if manifest["without_feature"]:
        counts = (f"{kind} {count:,}" for kind, count in manifest["without_feature"].items())
        print(f"Without a feature: {', '.join(counts)}.")
    if unused := manifest["unused_columns"]:
        print(f"Kept as they are, and {unused_text(unused)}.")
    if manifest["constant_features"]:
        print(f"Features that are one number throughout: {manifest['constant_features']:,}.")
    if manifest["mean_cosine"] is not None:
        print(f"Mean cosine {manifest['mean_cosine']:.3f}{_quality(manifest)}.")
    fitted = manifest.get("sharpness")
    if fitted is not None and manifest["settings"]["encoder"] in ("efficientnet", "clip"):
        end = ", an end of the search" if fitted["at_bound"] else ""
        print(f"Sharpness of the soft route: {fitted['sharpness']:.2f}, fitted{end}.")
    return 0


def _quality(manifest: dict) -> str:
    said = f", median margin {manifest['margins']['0.5']:.3f}"
    if manifest.get("cost_of_balance") is not None:
        said += f", cost of balance {manifest['cost_of_balance']:.4f}"
    if manifest.get("agreement") is not None:
        said += f", agreement of restarts {manifest['agreement']:.3f}"
    return said
