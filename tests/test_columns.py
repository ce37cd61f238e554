"""`columns`: what is not read of a row is named, and pictures are not left out unless asked for."""

import json

import numpy as np
import pytest

from dfm_jax import cli
from dfm_jax.cli.launch import Members
from dfm_jax.data.columns import Columns
from dfm_jax.data.tokens import byte_tokenizer, map_tokens, read_texts
from dfm_jax.training import fit as fitting
from dfm_jax.training.loop import Outcome
from dfm_jax.training.members import load_member_data
from dfm_jax.training.presets import load_config

SAID = "not used: columns `image` (11 rows), `weight` (11 rows)"
SMALL = [
    *("--config", "tiny", "--set", "model.width=8", "model.num_heads=2", "model.num_layers=1"),
    *("model.ffn_width=8", "num_positions=16", "batch_size=4", "num_steps=1", "held_out=0.5"),
]


def row(number, **more):
    turns = [{"from": "human", "value": f"What is {number}?"}, {"from": "gpt", "value": "A tug."}]
    return {"id": number, "conversations": turns, **more}


def write(path, *rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path):
    """Twelve rows with pictures, but for the first."""
    seen = [row(n, image=f"{n}.png", weight=0.5) for n in range(1, 12)]
    return write(tmp_path / "rows.jsonl", row(0, weight=None), *seen)


def run(command, data, folder, *more):
    return cli.main([command, "--run", str(folder), "--data", str(data), *SMALL, *more])


REFUSED = {
    "train": ("train",),
    "train, on disk": ("train", "--on-disk"),
    "sweep": ("sweep", "--grid", "seed=0:2"),
}


@pytest.mark.parametrize(("command", "more"), [(c, m) for c, *m in REFUSED.values()], ids=REFUSED)
def test_pictures_are_not_left_out_in_silence(rows, tmp_path, capsys, command, more):
    assert run(command, rows, tmp_path / "run", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "rows.jsonl, line 2: `text_only` must be given if rows have pictures" in line
    assert "got a row with `image`. Pass `--text-only`" in line
    assert not list(tmp_path.glob("run/**/config.json"))


def test_with_text_only_the_columns_that_are_not_used_are_named(
    rows, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(fitting, "train", lambda *_, **__: Outcome(1, 0, True, {}))
    assert run("train", rows, tmp_path / "run", "--text-only") == 0
    assert capsys.readouterr().out.startswith(f"{SAID}\nfinished")
    bare = write(tmp_path / "bare.jsonl", *map(row, range(12)))
    assert run("train", bare, tmp_path / "bare") == 0
    assert "not used" not in capsys.readouterr().out
    config = load_config("tiny", SMALL[3:])
    loaded = load_member_data(rows, config, None, columns=Columns(text_only=True))
    expected = load_member_data(bare, config, None)
    assert loaded.description == expected.description | {"text_only": True}
    assert loaded.train.digest == expected.train.digest


@pytest.mark.slow
def test_what_was_asked_for_once_holds_for_the_same_documents_and_not_for_others(
    rows, tmp_path, capsys
):
    assert run("train", rows, tmp_path / "run", "--text-only") == 0
    evaluate = ["evaluate", "--run", str(tmp_path / "run")]
    assert cli.main(evaluate) == 0
    assert capsys.readouterr().out.endswith(f"dense: {SAID}\n")
    assert cli.main([*evaluate, "--data", str(rows)]) == 2
    assert "line 2: `text_only` must be given" in capsys.readouterr().err
    assert cli.main([*evaluate, "--data", str(rows), "--text-only"]) == 0
    assert capsys.readouterr().out.endswith(f"dense: {SAID}\n")


def test_tokens_that_were_kept_know_what_was_left_out(rows, tmp_path):
    def kept(**options):
        columns = Columns(**options)
        map_tokens(rows, tmp_path / "t", byte_tokenizer(), name="bytes", share=0.5, columns=columns)
        return columns

    assert kept(text_only=True).counts() == {
        "unused": {"image": 11, "weight": 11},
        "pictures": 11,
    }
    before = (tmp_path / "t" / "manifest.json").stat().st_mtime_ns
    assert kept(text_only=True).counts() == kept(text_only=True).counts()
    assert kept(text_only=True).pictures == 11
    with pytest.raises(
        ValueError, match=r"rows\.jsonl: `text_only` must be .* got 11 rows with pictures"
    ):
        kept()
    assert (tmp_path / "t" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("grid", [(), ("seed=0:2",)])
def test_the_option_travels_to_every_job(tmp_path, grid):
    (tmp_path / "parts" / "expert_000").mkdir(parents=True)
    options = {"config": "tiny", "data": tmp_path / "parts", "folder": tmp_path, "grid": grid}
    for text_only in (False, True):
        jobs = Members(**options, text_only=text_only).jobs()
        assert all(("--text-only" in job.arguments) == text_only for job in jobs)
        assert jobs


HAS_PICTURES = {
    "another name": row(0, images=["a.png"]),
    "a path": row(0, image_path="a.png"),
    "only said": {"conversations": [{"from": "human", "value": "<image>\nWhat?"}]},
    "beside a text": {"text": "A tug.", "image": "a.png"},
}


@pytest.mark.parametrize("one", HAS_PICTURES.values(), ids=HAS_PICTURES)
def test_a_picture_is_one_under_any_name(tmp_path, one):
    path = write(tmp_path / "rows.jsonl", one)
    with pytest.raises(ValueError, match=r"line 1: `text_only` must be given"):
        read_texts(path)
    assert len(read_texts(path, Columns(text_only=True))) == 1


def test_what_is_no_picture_is_none(tmp_path):
    document = [{"from": "document", "value": "the tag <image> of SVG"}]
    path = write(
        tmp_path / "rows.jsonl",
        *(row(0, image=None), row(1, image=""), row(2, image=[]), row(3)),
        {"conversations": document},
        {"text": "the tag <image> of SVG"},
    )
    columns = Columns()
    assert len(read_texts(path, columns)) == 6
    assert columns.counts() == {"unused": {}, "pictures": 0}


def test_columns_within_turns_and_beside_the_text_are_named(tmp_path):
    turns = [{"from": "human", "value": "What?", "loss": False}]
    both = {"text": "A tug.", "conversations": turns, "source": np.pi}
    path = write(tmp_path / "rows.jsonl", both, {"conversations": turns, "source": 1})
    columns = Columns()
    assert read_texts(path, columns) == ["A tug.", "human: What?\n"]
    assert columns.text() == (
        "not used: columns `conversations` (1 row), `conversations.loss` (1 row), `source` (2 rows)"
    )


def test_a_row_without_text_says_what_it_has(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"id": 1, "messages": [{"role": "user"}]})
    with pytest.raises(
        ValueError, match=r"line 1: the row must have `text`.* got a row with `id`, `messages`"
    ):
        read_texts(path)
    write(path, {"conversations": [{"role": "user", "content": "What?"}]})
    with pytest.raises(ValueError, match=r"whose first turn has `role`, `content`\."):
        read_texts(path)
    write(path, {"conversations": [{"from": ["human"], "value": "What?"}]})
    with pytest.raises(ValueError, match="the texts `from` and `value`"):
        read_texts(path)
