"""Hostile and unlucky inputs to the command line: `python tests/hostile_inputs.py`.

Each row says what is wrong, makes its files in an empty folder, gives the command there and expects
one line on stderr that holds some words, a status, no traceback, and nothing written: no file or
folder that was not there, at the command's own `out` or outside. Weights' headers are in
`test_headers.py`: no command takes such a file.
"""

import contextlib
import io
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfm_jax import cli

Content = str | bytes
WORDS = {
    f"texts/{i}.txt": f"{'the cat sat on the mat and looked at the moon ' * 9}{i}" for i in range(8)
}
ROW = {
    "id": "a",
    "conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}],
}
ROWS = "".join(json.dumps(ROW | {"id": str(i)}) + "\n" for i in range(4))
TRAIN = "train --config tiny --data texts --run out"
SWEEP = "sweep --config tiny --data texts --run out"
PARTITION = "partition --input rows.jsonl --num-experts 2 --out out"
JOBS = "--config tiny --data parts --experts 0 --out out"
SCORE = "--questions q.jsonl --predictions p.jsonl --json out"
BROUGHT = "--features f.npy"


class Case(NamedTuple):
    """One input: what is wrong, the command, the words of its refusal, its files, its status."""

    what: str
    command: str
    words: str
    files: Mapping[str, Content] = {}
    status: int = 2
    prepare: Callable[[Path], None] | None = None


def npy(values: np.ndarray, *, cut: int = 0) -> bytes:
    """An `.npy` file, its last bytes cut off."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()[: len(file.getvalue()) - cut]


def scored(row: Mapping[str, object] | str, answer: object = "x") -> dict[str, Content]:
    """A question and its answer."""
    question = row if isinstance(row, str) else json.dumps({"question_id": 1, **row})
    return {"q.jsonl": question, "p.jsonl": json.dumps({"question_id": 1, "text": answer})}


def score(benchmark: str) -> str:
    """The command that scores them."""
    return f"score --benchmark {benchmark} {SCORE}"


def loop(folder: Path) -> None:
    """A link to the folder that it lies in."""
    (folder / "texts" / "again").symlink_to(folder / "texts")


def broken_link(folder: Path) -> None:
    """A link that leads nowhere."""
    (folder / "texts" / "gone.txt").symlink_to(folder / "nothing")


def ensemble(folder: Path) -> None:
    """A manifest that names a folder above its own, with the right digest."""
    from dfm_jax.training.ensemble import Ensemble, Expert, write_ensemble

    config = {"config": {}, "data": {"tokenizer": "bytes", "train_tokens": 3}}
    names = {"name": "../expert_000", "sha256": "0", "config_sha256": "0"}
    (folder / "run").mkdir()
    expert = Expert(**names, step=1, config=config, count=3)
    write_ensemble(folder / "run" / "ensemble.json", Ensemble(experts=(expert,)))


FEATURES = {"rows.jsonl": ROWS, "f.npy": npy(np.eye(4, dtype=np.float32))}
CASES = (
    # ── train, sweep ──
    Case("no such preset", TRAIN.replace("tiny", "tinny"), "tinny", WORDS),
    Case("data that are not there", TRAIN, "texts"),
    Case("an empty folder of texts", TRAIN, "texts", prepare=lambda f: (f / "texts").mkdir()),
    Case("a broken link among texts", TRAIN, "gone.txt", WORDS, prepare=broken_link),
    Case("a folder that holds itself", TRAIN, "again", WORDS, prepare=loop),
    Case("a text in Latin-1", TRAIN, "old.txt", WORDS | {"texts/old.txt": b"caf\xe9 " * 40}),
    Case("a seed that no key holds", f"{TRAIN} --set seed=4294967296", "seed", WORDS),
    Case("a negative seed", f"{TRAIN} --set seed=-1", "seed", WORDS),
    Case("a field twice", f"{TRAIN} --set seed=1 seed=2", "seed", WORDS),
    Case("no such field", f"{TRAIN} --set sead=1", "sead", WORDS),
    Case("a width of 0", f"{TRAIN} --set model.width=0", "width", WORDS),
    Case("no step", f"{TRAIN} --set num_steps=0", "num_steps", WORDS),
    Case(
        "a tokenizer that is none",
        f"{TRAIN} --tokenizer t.json",
        "t.json",
        WORDS | {"t.json": "{}"},
    ),
    Case("an expert of no partition", f"{TRAIN} --expert 0", "expert", WORDS),
    Case(
        "pictures that nobody sees",
        "train --config tiny --data rows.jsonl --run out",
        "image",
        {
            "rows.jsonl": "".join(
                json.dumps(ROW | {"id": str(i), "image": "a.png"}) + "\n" for i in range(9)
            )
        },
    ),
    Case(
        "a key twice in a config",
        TRAIN.replace("tiny", "c.json"),
        "twice",
        WORDS | {"c.json": '{"seed": 1, "seed": 2}'},
    ),
    Case(
        "a config nested deeply",
        TRAIN.replace("tiny", "c.json"),
        "nested",
        WORDS | {"c.json": "[" * 101 + "]" * 101},
    ),
    Case("an axis twice", f"{SWEEP} --grid seed=0:2 seed=3:4", "seed", WORDS),
    Case("a value twice in an axis", f"{SWEEP} --grid seed=1,1", "seed", WORDS),
    Case("an aliased seed in an axis", f"{SWEEP} --grid seed=5,4294967301", "seed", WORDS),
    Case("no such axis", f"{SWEEP} --grid sead=1,2", "sead", WORDS),
    # ── evaluate, sample, make-ensemble ──
    Case("a run that is not there", "evaluate --run run", "run"),
    Case(
        "a run without experts", "make-ensemble --run run", "no expert is there", {"run/.keep": ""}
    ),
    Case("nothing to sample from", "sample --run run", "run", {"run/.keep": ""}),
    Case("a manifest that leads out", "sample --run run", "name", prepare=ensemble),
    # ── partition, route ──
    Case("no features and no encoder", PARTITION, "features", {"rows.jsonl": ROWS}),
    Case(
        "a key twice in a row",
        f"{PARTITION} {BROUGHT}",
        "twice",
        FEATURES | {"rows.jsonl": '{"id": "a", "id": "b"}\n'},
    ),
    Case(
        "a row nested deeply",
        f"{PARTITION} {BROUGHT}",
        "nested",
        FEATURES | {"rows.jsonl": '{"id": ' + "[" * 101 + "]" * 101 + "}"},
    ),
    Case(
        "NaN in a row", f"{PARTITION} {BROUGHT}", "NaN", FEATURES | {"rows.jsonl": '{"id": NaN}\n'}
    ),
    Case(
        "features of fewer rows",
        f"{PARTITION} {BROUGHT}",
        "4 rows",
        FEATURES | {"f.npy": npy(np.eye(3, dtype=np.float32))},
    ),
    Case(
        "features cut short",
        f"{PARTITION} {BROUGHT}",
        "claims",
        FEATURES | {"f.npy": npy(np.eye(4, dtype=np.float32), cut=4)},
    ),
    Case(
        "features of objects",
        f"{PARTITION} {BROUGHT}",
        "objects",
        FEATURES | {"f.npy": npy(np.array([None] * 4))},
    ),
    Case(
        "features that are NaN",
        f"{PARTITION} {BROUGHT}",
        "finite",
        FEATURES | {"f.npy": npy(np.full((4, 4), np.nan, np.float32))},
    ),
    Case(
        "features that are all zero",
        f"{PARTITION} {BROUGHT}",
        "feature is zero",
        FEATURES | {"f.npy": npy(np.zeros((4, 4), np.float32))},
    ),
    Case("more experts than rows", f"{PARTITION.replace(' 2', ' 9')} {BROUGHT}", "9", FEATURES),
    Case(
        "an aliased seed of a partition",
        f"{PARTITION} {BROUGHT} --seed 4294967296",
        "seed",
        FEATURES,
    ),
    Case(
        "a partition that is none",
        "route --input rows.jsonl --partition p --out out",
        "p",
        {"rows.jsonl": ROWS, "p/.keep": ""},
    ),
    # ── launch ──
    Case("a line break in a run", f"launch slurm {JOBS} --run 'a\ntrue'", "one line of printable"),
    Case(
        "U+0085 in a run", f"launch jobset {JOBS} --image i --run 'a\x85b'", "one line of printable"
    ),
    Case(
        "U+2028 in a run",
        f"launch jobset {JOBS} --image i --run 'a\u2028b'",
        "one line of printable",
    ),
    Case("%j in a run", f"launch slurm {JOBS} --run a%j", "must not hold %"),
    Case("a backslash in a run", f"launch slurm {JOBS} --run 'a\\b'", "must not hold %"),
    Case(
        "$( in a pod's command",
        f"launch jobset {JOBS} --image i --run 'a$(B)' --hosts-per-expert 2 --placement sharded",
        "which Kubernetes",
    ),
    Case(
        "a long name of a JobSet",
        f"launch jobset {JOBS} --image i --run r --name {'a' * 41}",
        "at most 40",
    ),
    Case(
        "a long name of a pod",
        f"launch jobset {JOBS} --image i --run r --name {'a' * 40} "
        "--hosts-per-expert 2 --placement sharded",
        "at most 63",
    ),
    Case("an option that is none of sbatch's", f"launch slurm {JOBS} --run r --lines x", "lines"),
    Case(
        "nobody at a time",
        "launch local --config tiny --data parts --run out --experts 0 --jobs 0",
        "jobs",
    ),
    Case(
        "more devices than there are",
        "launch local --config tiny --data parts --run out --experts 0 --devices-per-expert 999999",
        "`devices_per_expert` must be at most",
    ),
    # ── score ──
    Case(
        "a truth in lower case",
        score("scienceqa"),
        "line 1: `answer` must be the capital",
        scored({"answer": "b", "choices": 3}),
    ),
    Case(
        "an index for a letter",
        score("scienceqa"),
        "line 1: `answer` must be the capital",
        scored({"answer": "1", "choices": 3}),
    ),
    Case(
        "a box of x, y, w, h",
        score("refcoco") + " --box-scale pixels",
        "x_1 < x_2",
        scored({"answer": "[90, 90, 50, 50]", "box_scale": "pixels"}),
    ),
    Case(
        "a box without its scale",
        score("refcoco") + " --box-scale pixels",
        "box_scale",
        scored({"answer": "[9, 9, 50, 50]"}),
    ),
    Case(
        "answers without their scale",
        score("refcoco"),
        "box_scale",
        scored({"answer": "[9, 9, 50, 50]", "box_scale": "pixels"}, "[1, 2, 30, 40]"),
    ),
    Case(
        "neither yes nor no",
        score("pope"),
        "line 1: `answer` must be yes or no",
        scored({"answer": "B"}),
    ),
    Case(
        "a key twice in a question",
        score("gqa"),
        "twice",
        scored('{"question_id": 1, "answer": "a", "answer": "b"}'),
    ),
    Case("nine people", score("textvqa"), "10 people", scored({"answers": ["a"] * 9})),
    Case(
        ("an answer that is a number"),
        score("gqa"),
        "must have one text",
        scored({"answer": "a"}, 5),
    ),
    Case(
        "an answer to another question",
        score("gqa"),
        "unknown questions",
        scored({"answer": "a", "question_id": 2}),
    ),
    Case("an empty file of questions", score("gqa"), "must hold a question", scored("")),
    # ── verify ──
    Case("no such statement", "verify --labels Z99", "Z99"),
    Case("an aliased seed of verify", "verify --labels D4 --seed 4294967296", "seed"),
)


def fault(case: Case) -> tuple[bool, bool, bool, str]:
    """Whether it was accepted in silence, ended in a traceback, wrote elsewhere; what is amiss."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "here"
        folder.mkdir()
        for name, content in case.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if case.prepare is not None:
            case.prepare(folder)
        before = sorted(folder.rglob("*"))
        out, err, traceback = io.StringIO(), io.StringIO(), False
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = cli.main(shlex.split(case.command))
        except SystemExit as stop:  # of the parser
            status = int(stop.code or 0)
        except BaseException as error:
            status, traceback = 1, True
            err.write(f"{type(error).__name__}: {error}")
        finally:
            os.chdir(home)
        said = err.getvalue()
        outside = sorted(path.name for path in Path(base).iterdir()) != ["here"]
        made = sorted(path.name for path in {*folder.rglob("*")} - {*before})
    traceback |= "Traceback" in said
    amiss = [f"status {status}, not {case.status}"] if status != case.status else []
    amiss += [] if case.words in said else [f"does not say {case.words!r}"]
    amiss += [f"{len(said.splitlines())} lines"] if len(said.splitlines()) != 1 else []
    amiss += [f"wrote {', '.join(made)}"] if made else []
    amiss += ["traceback"] if traceback else []
    amiss += ["wrote outside"] if outside else []
    shown = f"{'; '.join(amiss)}: {said.strip()[:300]}" if amiss else ""
    return status == 0, traceback, outside, shown


def main() -> int:
    """A numbered line each, then the counts; the status is 1 if anything is amiss."""
    found = []
    for number, case in enumerate(CASES, start=1):
        found.append(fault(case))
        print(f"{number:>3}  {case.what:<40} {found[-1][3] or 'refused'}", flush=True)
    silent, tracebacks, outside = (sum(one[i] for one in found) for i in range(3))
    print(
        f"{len(CASES)} inputs, {silent} accepted in silence, {tracebacks} tracebacks, "
        f"{outside} files written outside"
    )
    return int(any(one[3] for one in found))


if __name__ == "__main__":
    sys.exit(main())
