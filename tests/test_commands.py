"""train, evaluate, sample from the command line, on a network of a thousand parameters."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from dfm_jax import cli
from dfm_jax.models import transformer
from dfm_jax.training.checkpoint import checkpoint_steps, read_record
from dfm_jax.training.config import to_json
from dfm_jax.training.digests import CheckpointError
from dfm_jax.training.ensemble import read_ensemble
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.members import check_member, read_member, write_member
from dfm_jax.training.metrics import read_metrics
from dfm_jax.training.presets import load_config
from dfm_jax.training.stopping import NonFiniteError
from experiments.lib.corpora import write_texts

STEPS = 20
SMALL = [
    *("--config", "tiny", "--log-every", "5", "--save-every", "5", "--evaluate-every", "10"),
    *("--set", "model.width=8", "model.num_heads=2", "model.num_layers=1", "model.ffn_width=8"),
    *("num_positions=16", "batch_size=4", "ema_decay=0.5", f"num_steps={STEPS}"),
]


def train(run: Path, data: Path, *more: str) -> int:
    return cli.main(["train", "--run", str(run), "--data", str(data), *SMALL, *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Forty documents, and the same assigned to two experts."""
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "all")
    for number, path in enumerate(sorted((folder / "all").iterdir())):
        part = folder / "parts" / f"expert_{number % 3 // 2:03d}"
        part.mkdir(parents=True, exist_ok=True)
        (part / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A dense model and two experts, trained and gathered."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(folder, data / "all") == 0
    for expert in "01":
        assert train(folder, data / "parts", "--expert", expert) == 0
    assert cli.main(["make-ensemble", "--run", str(folder)]) == 0
    return folder


def leaves(member: Path) -> dict:
    return read_record(member / str(STEPS)).leaves


# ── train ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_finished_run_is_left_alone(run, data, capsys):
    def files():
        """But for the lock, which was held meanwhile."""
        return {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.name != ".lock"}

    before = files()
    assert train(run, data / "all") == 0
    assert "is finished already, at step 20; nothing was done" in capsys.readouterr().out
    assert before == files()


@pytest.mark.slow
def test_from_the_disk_it_is_the_same_run(run, data, tmp_path, capsys):
    """Tokens mapped and read ahead by grain: every leaf and every line of the log, to the bit."""
    assert train(tmp_path, data / "parts", "--expert", "1", "--on-disk") == 0
    here, there = tmp_path / "expert_001", run / "expert_001"
    assert (here / "tokens" / "train.tokens").stat().st_size > 0
    assert leaves(here) == leaves(there)
    logs = [read_metrics(member / "metrics.jsonl") for member in (here, there)]
    clock = {"tokens_per_second": 0}
    assert [row | clock for row in logs[0]] == [row | clock for row in logs[1]]
    assert cli.main(["evaluate", "--run", str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert cli.main(["evaluate", "--run", str(run), "--expert", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == line


@pytest.mark.slow
def test_another_config_or_other_data_are_refused_by_field(run, data, capsys):
    assert train(run, data / "all", "seed=1") == 2
    assert (
        "`config.seed` must be 0, as in the run of this folder; got config.seed = 1"
        in capsys.readouterr().err
    )
    assert train(run, data / "parts" / "expert_000") == 2
    assert "`data.train_documents`" in capsys.readouterr().err


def test_a_start_that_saved_nothing_binds_nobody(data, tmp_path, capsys):
    """Refused, it leaves no config.json; and one that a crash has left is not that of a run."""
    where, folder = ("--placement", "replicated"), tmp_path / "dense"
    three = [word.replace("batch_size=4", "batch_size=3") for word in SMALL]
    command = ["train", "--run", str(tmp_path), "--data", str(data / "all"), *three, *where]
    assert cli.main(command) == 2
    assert "must be a multiple of 8, the number of devices" in capsys.readouterr().err
    assert not (folder / "config.json").exists()
    tokens = {"tokens": 1, "documents": 1, "sha256": ""}
    kept = {f"{side}_{k}": v for side in ("train", "held_out") for k, v in tokens.items()}
    record = {"config": to_json(load_config("tiny")), "data": kept | {"tokenizer": "bytes"}}
    folder.mkdir(parents=True)
    write_member(folder, record, data)
    other = record | {"config": to_json(load_config("tiny", ["seed=1"]))}
    check_member(folder, other)
    write_member(folder, other, data)
    assert read_member(folder)["config"]["seed"] == 1
    for name in ("5", "5.damaged"):  # what was saved, good or not, does
        (folder / name).mkdir()
        with pytest.raises(CheckpointError, match=r"got config\.seed = 0"):
            check_member(folder, record)
        (folder / name).rmdir()


@pytest.mark.slow
def test_a_member_says_what_it_is_a_function_of(run, data):
    record = json.loads((run / "expert_001" / "config.json").read_text())
    assert record["config"]["num_steps"] == STEPS
    assert record["data"]["tokenizer"] == "bytes"
    assert record["data"]["train_documents"] + record["data"]["held_out_documents"] == 13
    assert set(record["versions"]) == {"jax", "flax", "optax", "orbax-checkpoint"}
    steps = [row["step"] for row in read_metrics(run / "expert_001" / "metrics.jsonl")]
    assert steps == [5, 10, 10, 15, 20, 20]
    assert len(checkpoint_steps(run / "dense")) in (2, 3)


@pytest.mark.slow
def test_it_learns(run):
    rows = read_metrics(run / "dense" / "metrics.jsonl")
    losses = [row["validation"] for row in rows if "validation" in row]
    assert len(losses) == 2
    assert losses[1] < losses[0] - 0.1


def test_a_loss_that_is_not_finite_has_a_status_of_its_own(data, tmp_path, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise NonFiniteError("loss is nan at step 7 of the run r; the last good checkpoint is 5.")

    monkeypatch.setattr("dfm_jax.training.fit.train_member", broken)
    assert train(tmp_path, data / "all") == 3
    assert "train: loss is nan at step 7 of the run r" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_saves_and_has_a_status_of_its_own(data, run, tmp_path):
    """From the shell: 143, a checkpoint of the step it stopped at, and the same end."""
    command = [sys.executable, "-m", "dfm_jax", "train", "--run", str(tmp_path), "--data"]
    # A save after the last step alone: what is there after the signal was written because of it.
    longer = {f"num_steps={STEPS}": "num_steps=100000"}
    words = [longer.get(word, word) for word in SMALL]
    words[words.index("--save-every") + 1] = "1000000"
    command += [str(data / "all"), *words]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        log = tmp_path / "dense" / "metrics.jsonl"
        while not log.is_file() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    (step,) = checkpoint_steps(tmp_path / "dense")
    assert f"stopped at step {step}, saved; the same command goes on from here" in out
    assert 0 < step < 100_000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "tinny"], "`config` must be a file, or one of tiny, small, small-masked"),
        (["--set", "model.widht=3"], "got set = 'model.widht'. Did you mean 'model.width'?"),
        (
            ["--set", "model.width=3"],
            "`width` must be a multiple of `num_heads`, which is 2; got width = 3",
        ),
        (["--set", "seed=one"], "`config.seed` must be of type int; got config.seed = 'one'"),
        (["--set", "seed"], "`set` must be FIELD=VALUE"),
        (["--data", "nowhere"], "`data` must be a folder or a file; got data = 'nowhere'"),
        (["--expert", "7"], "`expert` must have the folder "),
        (["--expert", "-1"], "`expert` must be at least 0; got expert = -1"),
        (["--save-every", "0"], "`save_every` must be at least 1; got save_every = 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(args, message, tmp_path, capsys):
    given = {"--config": "tiny", "--data": str(tmp_path), "--run": str(tmp_path / "run")}
    given |= dict(zip(args[::2], args[1::2], strict=True))
    assert cli.main(["train", *(word for pair in given.items() for word in pair)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train", "evaluate", "sample", "make-ensemble", "export"])
def test_help_gives_examples(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.count(f"python -m dfm_jax {name} --") >= 2 - (
        name == "make-ensemble"
    )


# ── evaluate ────────────────────────────────────────────────────────────────────────────────────


@cache
def applied(model):
    """The network alone, compiled."""
    return jax.jit(transformer(model).apply)


def losses_by_hand(member: Path, texts: list[str]) -> np.ndarray:
    """Nats of every window of 16 bytes, by the network alone."""
    trained = load_member(member)
    apply, nats = applied(trained.config.model), []
    for text in texts:
        tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        for first in range(0, len(tokens), 16):
            window = tokens[first : first + 16]
            rest = np.zeros(16 - len(window), np.int32)
            before = np.concatenate([[256], window[:-1], rest]).astype(np.int32)
            logits = np.asarray(apply(trained.state.ema, before), np.float64)
            probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            nats.append(-probs[np.arange(len(window)), window].sum())
    return np.array(nats)


@pytest.mark.slow
def test_evaluate_prints_a_line_per_member_and_what_the_network_pays(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("in the beginning was light")
    (tmp_path / "b.txt").write_text("darkness upon the face of the deep")
    assert cli.main(["evaluate", "--run", str(run), "--data", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["dense", "expert_000", "expert_001", "ensemble"]
    assert [line.split()[0] for line in lines[1:]] == names
    texts = [path.read_text() for path in sorted(tmp_path.iterdir())]
    each = [losses_by_hand(run / name, texts) for name in names[1:3]]
    weights = read_ensemble(run / "ensemble.json").log_weights
    mixed = -np.logaddexp(weights[0] - each[0], weights[1] - each[1])
    for line, windows in ((lines[2], each[0]), (lines[4], mixed)):
        expected = windows.sum() / sum(len(text.encode()) for text in texts)
        assert line.split()[3] == line.split()[6] == f"{expected:.4f}"
    assert cli.main(["evaluate", "--run", str(run), "--expert", "1", "--checkpoint", "best"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("expert_001")


@pytest.mark.slow
def test_evaluate_refuses_what_it_cannot_judge(run, data, tmp_path, capsys):
    assert cli.main(["evaluate", "--run", str(tmp_path)]) == 2
    assert "no member with a checkpoint is there" in capsys.readouterr().err
    assert cli.main(["evaluate", "--run", str(run), "--expert", "5"]) == 2
    assert "expert_005: no config.json is there. Nothing was trained" in capsys.readouterr().err
    moved = data / "all" / "00.txt"
    text = moved.read_text()
    moved.write_text(text + "more")
    assert cli.main(["evaluate", "--run", str(run)]) == 2
    said = capsys.readouterr().err
    assert "as when" in said
    assert "`train_" in said or "`held_out_" in said
    moved.write_text(text)
    pieces = tmp_path / "tokenizer.json"
    pieces.write_text(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    assert cli.main(["evaluate", "--run", str(run), "--tokenizer", str(pieces)]) == 2
    assert (
        "`tokenizer` must be bytes, the tokenizer of the run; got tokenizer = sha256:"
        in capsys.readouterr().err
    )


# ── sample ──────────────────────────────────────────────────────────────────────────────────────


def sampled(run: Path, capsys, *args: str) -> str:
    assert cli.main(["sample", "--run", str(run), "--max-new", "6", *args]) == 0
    return capsys.readouterr().out


def greedy(run: Path, members: dict[str, float], prompt: str, count: int) -> list[int]:
    """Σ_k w_k q_k(x^{<i}, v), whole sequences scored anew for each token, in float64."""
    experts = [load_member(run / name) for name in members]
    ids = list(prompt.encode())
    for _ in range(count):
        before = np.array([256, *ids, *[0] * (15 - len(ids))], np.int32)
        joint = []
        for expert, weight in zip(experts, members.values(), strict=True):
            logits = np.asarray(applied(expert.config.model)(expert.state.ema, before), np.float64)
            probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            so_far = np.log(weight) + probs[np.arange(len(ids)), ids].sum()
            joint.append(so_far + probs[len(ids)])
        ids.append(int(np.logaddexp.reduce(joint).argmax()))
    return ids


@pytest.mark.slow
def test_an_expert_and_the_ensemble_continue_a_prompt(run, capsys):
    """At temperature 0, token for token as whole sequences are weighed by hand."""
    args = ("--prompt", "in the ", "--num-samples", "2", "--temperature", "0", "--ids")
    rows = sampled(run, capsys, "--expert", "1", *args).splitlines()
    expected = [str(i) for i in greedy(run, {"expert_001": 1.0}, "in the ", 6)]
    assert [row.split() for row in rows] == [expected] * 2
    rows = sampled(run, capsys, *args).splitlines()
    ensemble = read_ensemble(run / "ensemble.json")
    weights = {e.name: float(w) for e, w in zip(ensemble.experts, ensemble.weights, strict=True)}
    expected = [str(i) for i in greedy(run, weights, "in the ", 6)]
    assert [row.split() for row in rows] == [expected] * 2


@pytest.mark.slow
def test_text_is_drawn_by_its_seed(run, capsys):
    args = ("--prompt", "in the ", "--expert", "0", "--num-samples", "2", "--seed")
    two = sampled(run, capsys, *args, "3")
    assert len(two.split("\n――――――――\n")) == 2
    assert two == sampled(run, capsys, *args, "3")
    assert two != sampled(run, capsys, *args, "4")
    rows = sampled(run, capsys, *args, "3", "--ids").splitlines()
    assert [len(row.split()) for row in rows] == [13, 13]
    decoded = [bytes(map(int, row.split())).decode("utf-8", "replace") for row in rows]
    assert "\n――――――――\n".join(decoded) + "\n" == two


@pytest.mark.slow
def test_sample_refuses_what_it_cannot_say(run, data, tmp_path, capsys):
    def refused(*args: str) -> str:
        assert cli.main(["sample", *args]) == 2
        return capsys.readouterr().err

    where = ("--run", str(run))
    assert "no member with a checkpoint is there" in refused("--run", str(tmp_path))
    assert "`temperature` must lie in [0, inf)" in refused(*where, "--temperature", "-1")
    assert "`top_k` must lie in [1, 256]" in refused(*where, "--top-k", "257")
    assert "`stop_tokens` must hold ids in [0, 255]" in refused(*where, "--stop", "256")
    assert "`num_samples` must be at least 1" in refused(*where, "--num-samples", "0")
    assert "expert_004" in refused(*where, "--expert", "4")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer" in refused(*where, "--tokenizer", str(tmp_path / "tokenizer.json"))
    manifest = run / "ensemble.json"
    manifest.rename(run / "aside.json")
    assert "got members dense" in refused(*where)
    (run / "aside.json").rename(manifest)
    last = run / "expert_001" / str(STEPS)
    last.rename(run / "expert_001" / "aside")
    assert "expert_001/20: no checkpoint is there" in refused(*where)
    (run / "expert_001" / "aside").rename(last)
