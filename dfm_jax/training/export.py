"""A trained member written as a Hugging Face folder, for tools that read such folders."""

from pathlib import Path

from dfm_jax.checks import require
from dfm_jax.models.pretrained import Checkpoint, open_folder, write_folder
from dfm_jax.storage.folders import Folder
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.members import read_member, tokenizer_name, tokenizer_of
from dfm_jax.training.pretrained import folder_tokenizer, network_of


def export_member(
    member: Folder,
    out: Path,
    *,
    like: Checkpoint | None = None,
    tokenizer: Path | None = None,
    best: bool = False,
) -> Path:
    """Write a member as `write_folder` writes it; if it keeps an average, this is what is written.

    What stands beside the weights is that of `like`: the tokens that begin and end a text, the
    tokenizer, the template of chats. By default that is the folder from which the run started.

    Args:
        member: The folder of the member.
        out: The folder to write, which must not exist yet.
        like: A checkpoint of the same kind.
        tokenizer: The tokenizer.json of the run, if it is not that of `like`.
        best: Whether to take the best checkpoint, and not the last one.

    Raises:
        CheckpointError: if the member has no good checkpoint.
        FileExistsError: if there is something at `out`.
        ValueError: if the folder from which the run started is not at its place, or the tokenizer
            is not that of the run; if no Hugging Face model is such a network.
    """
    trained, record = load_member(member, best=best), read_member(member)
    config, state = trained.config, trained.state
    rule = "`task` of the run must be None, because a folder describes networks of the package"
    require(config.task is None, rule, config.task)
    if like is None and "init_source" in record:
        source = Path(record["init_source"])
        rule = f"`like` must be given, unless {source} is there, from which the run started"
        require(source.is_dir(), rule, None, name="like")
        like = open_folder(source)
    recorded, kept = record["data"]["tokenizer"], None if like is None else folder_tokenizer(like)
    pieces = None
    if recorded != "bytes" and (kept is None or tokenizer_name(kept) != recorded):
        rule = f"`tokenizer` must be given: the tokenizer.json of the run, {recorded}"
        require(tokenizer is not None, rule, None, name="tokenizer")
        pieces = tokenizer_of(config, tokenizer, recorded=recorded, padded="init" in record)
    params = state.params if state.ema is None else state.ema
    return write_folder(out, network_of(config), params, tokenizer=pieces, like=like)
