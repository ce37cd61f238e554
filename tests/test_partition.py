"""A data set partitioned among experts, from the command line: what is written, and what is
refused.
"""

import hashlib
import json
import os
import pickle
import tracemalloc
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dfm_jax import cli
from dfm_jax.data import records
from dfm_jax.data.manifest import manifest_digest
from dfm_jax.data.records import read_records
from dfm_jax.partition import assign as rules
from dfm_jax.partition import write as writing

pytestmark = pytest.mark.slow  # most of it is compilation

NUM_ROWS, NUM_EXPERTS = 50, 3
FEATURES = np.random.default_rng(0).normal(size=(NUM_ROWS, 8)).astype(np.float32)


def row_of(number: int) -> dict:
    said = "ä" * (1 + number * number % 37)
    turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": said}]
    return {"id": f"r{number}", "image": f"{number}.jpg", "conversations": turns}


def jsonl(rows) -> bytes:
    # Not as `json.dumps` would write them: verbatim is verbatim.
    lines = [json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows)]
    return "".join(f"  {line.replace(': ', ':   ')}\r\n" for line in lines).encode()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(map(row_of, range(NUM_ROWS))))
    np.save(tmp_path / "features.npy", FEATURES)
    return tmp_path


def partition(folder, *more, out="out", input="rows.jsonl", features="features.npy", k=NUM_EXPERTS):
    paths = ["--input", str(folder / input), "--features", str(folder / features)]
    args = [*paths, "--num-experts", str(k), "--out", str(folder / out), *more]
    return cli.main(["partition", *args])


def route(folder, *more, out="routed", input="rows.jsonl", features="features.npy"):
    paths = ["--input", str(folder / input), "--features", str(folder / features)]
    args = [*paths, "--partition", str(folder / "out"), "--out", str(folder / out), *more]
    return cli.main(["route", *args])


def manifest_of(out) -> dict:
    return json.loads((out / "manifest.json").read_text())


def lines_of(path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def assigned(out) -> list[list[bytes]]:
    return [lines_of(out / f"expert_{k:03d}" / "rows.jsonl") for k in range(NUM_EXPERTS)]


def contents(out) -> dict:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def refusal(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


# ── what is written ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("no_feature", ["unrouted", "random"])
def test_every_row_is_in_one_place_and_verbatim(folder, no_feature):
    rows = np.random.default_rng(1).permutation(NUM_ROWS)[:41]
    np.savez(folder / "some.npz", features=FEATURES[rows], rows=rows)
    assert partition(folder, "--no-feature", no_feature, features="some.npz") == 0
    out, whole = folder / "out", lines_of(folder / "rows.jsonl")
    unrouted = [json.loads(line)["row"] for line in lines_of(out / "unrouted.jsonl")]
    parts = assigned(out)
    assert sorted(sum(parts, [whole[row] for row in unrouted])) == sorted(whole)
    kept = [line for row, line in enumerate(whole) if row not in unrouted]
    assert lines_of(out / "dense.jsonl") == kept
    for part in parts:
        assert part == [line for line in kept if line in part]
    without = sorted(set(range(NUM_ROWS)) - set(rows.tolist()))
    assert unrouted == (without if no_feature == "unrouted" else [])
    manifest = manifest_of(out)
    assert manifest["unrouted"] + manifest["random"] == len(without) == 9
    assert manifest["sizes"] == [len(part) for part in parts]


def test_the_spread_follows_the_sizes_and_the_seed():
    sizes = np.array([1, 0, 3])
    labels, again, other = (np.full(4000, -1) for _ in range(3))
    rules.assign_at_random(labels, sizes, 0)
    rules.assign_at_random(again, sizes, 0)
    rules.assign_at_random(other, sizes, 1)
    counts = np.bincount(labels, minlength=3)
    assert counts[1] == 0
    assert abs(counts[0] - 1000) < 5 * 27.4  # standard deviations
    assert (labels == again).all()
    assert (labels != other).any()


def test_a_last_line_without_an_end_gets_one(folder):
    whole = (folder / "rows.jsonl").read_bytes().removesuffix(b"\r\n")
    (folder / "rows.jsonl").write_bytes(whole)
    assert partition(folder) == 0
    assert (folder / "out" / "dense.jsonl").read_bytes() == whole + b"\n"


def test_rows_are_balanced(folder, capsys):
    assert partition(folder) == 0
    assert sorted(manifest_of(folder / "out")["sizes"]) == [16, 17, 17]
    assert "50 rows" in capsys.readouterr().out


@pytest.mark.parametrize("own", [False, True])
def test_token_loads_exceed_their_mean_by_one_row_at_most(folder, own):
    rows = [row_of(number) for number in range(NUM_ROWS)]
    loads = np.array([sum(len(t["value"].encode()) for t in r["conversations"]) for r in rows])
    more = []
    if own:
        loads = loads[::-1] / 4
        np.save(folder / "weights.npy", loads)
        more = ["--weights", str(folder / "weights.npy")]
    assert partition(folder, "--balance", "tokens", *more) == 0
    number_of = {f"r{number}": number for number in range(NUM_ROWS)}
    parts = assigned(folder / "out")
    held = [sum(loads[number_of[json.loads(line)["id"]]] for line in part) for part in parts]
    assert manifest_of(folder / "out")["token_loads"] == held
    assert max(held) - loads.sum() / NUM_EXPERTS <= loads.max()
    assert (route(folder, *more), route(folder, out="x")) == (0, 2 if own else 0)


@pytest.mark.parametrize("own", [False, True])
def test_loads_stay_with_their_rows_where_features_leave_rows_out(folder, own):
    """Features in another order, and of some rows only: a load is still that of its row."""
    rng = np.random.default_rng(2)
    rows = rng.permutation(NUM_ROWS)[:41]  # as many as above, which is one program
    np.savez(folder / "some.npz", features=FEATURES[rows], rows=rows)
    said = [row_of(n)["conversations"] for n in range(NUM_ROWS)]
    loads = np.array([sum(len(turn["value"].encode()) for turn in turns) for turns in said])
    more = ["--balance", "tokens"]
    if own:
        loads = rng.permutation(np.r_[np.ones(30), 2.0 ** np.arange(20)])  # few have nearly all
        np.save(folder / "weights.npy", loads)
        more += ["--weights", str(folder / "weights.npy")]
    assert partition(folder, *more, features="some.npz") == 0
    parts = [[int(json.loads(r)["id"][1:]) for r in part] for part in assigned(folder / "out")]
    held = [loads[part].sum() for part in parts]
    assert sorted(row for part in parts for row in part) == sorted(rows.tolist())
    assert manifest_of(folder / "out")["token_loads"] == held
    assert max(held) - loads[rows].sum() / NUM_EXPERTS <= loads[rows].max()
    if not own:  # what balance by the loads of other rows would not give
        assert max(held) - min(held) <= 2 * loads[rows].max()


def test_a_row_named_several_times_has_the_mean(folder):
    rows = np.r_[np.arange(NUM_ROWS), 4, 4, 9]
    several = np.concatenate([FEATURES, FEATURES[[5, 6, 10]]])
    mean = FEATURES.copy()
    mean[4], mean[9] = FEATURES[[4, 5, 6]].mean(0), FEATURES[[9, 10]].mean(0)
    np.savez(folder / "several.npz", features=several, rows=rows)
    np.save(folder / "mean.npy", mean)
    assert partition(folder, features="several.npz") == 0
    assert partition(folder, features="mean.npy", out="mean") == 0
    assert assigned(folder / "out") == assigned(folder / "mean")
    assert manifest_of(folder / "out")["averaged_rows"] == 2
    assert manifest_of(folder / "mean")["averaged_rows"] == 0


# ── statistics, and two stages ──────────────────────────────────────────────────────────────────


def rule_of(out) -> dict:
    return load_file(out / "centroids.safetensors")


def cosines_of(arrays, features=FEATURES) -> np.ndarray:
    centered = (features - arrays["mean"]).astype(np.float64)
    return centered @ arrays["centroids"].T / np.linalg.norm(centered, axis=1, keepdims=True)


def labels_of(out, num_rows=NUM_ROWS) -> np.ndarray:
    labels = np.full(num_rows, -1)
    for k in range(len(manifest_of(out)["sizes"])):
        for line in lines_of(out / f"expert_{k:03d}" / "rows.jsonl"):
            labels[int(json.loads(line)["id"][1:])] = k
    return labels


@pytest.fixture
def uneven(folder):
    """Features of which a balance moves some."""
    features = FEATURES.copy()
    features[:35] = features[:35] / 2 + 1
    np.save(folder / "uneven.npy", features)
    return features


@pytest.mark.parametrize("chunk", [7, 1 << 13])
def test_statistics_are_those_of_the_rows(folder, uneven, monkeypatch, chunk):
    monkeypatch.setattr(rules, "_CHUNK", chunk)
    assert partition(folder, features="uneven.npy") == 0
    manifest, labels = manifest_of(folder / "out"), labels_of(folder / "out")
    cosines = cosines_of(rule_of(folder / "out"), uneven)
    own = cosines[np.arange(NUM_ROWS), labels]
    cosines[np.arange(NUM_ROWS), labels] = -np.inf
    margins = own - cosines.max(axis=1)
    assert manifest["mean_cosine"] == pytest.approx(own.mean(), abs=1e-6)
    for q in ("0.05", "0.5", "0.99"):
        assert manifest["margins"][q] == pytest.approx(np.quantile(margins, float(q)), abs=1e-6)
    assert manifest["moved"] == (margins < 0).sum() > 0
    # The rule, by the formula.
    arrays = rule_of(folder / "out")
    assert arrays["cluster_of"].tolist() == [0, 1, 2]
    best = (cosines_of(arrays, uneven) - arrays["prices"]).argmax(axis=1)
    assert (best != labels).sum() <= 3  # at ties


@pytest.mark.usefixtures("uneven")
def test_the_cost_of_balance_and_the_agreement_of_restarts(folder):
    of_uneven = partial(partition, folder, features="uneven.npy")
    assert of_uneven("--balance", "none", "--restarts", "3", out="free") == 0
    assert of_uneven("--restarts", "3") == of_uneven(out="one") == 0
    free, held, one = (manifest_of(folder / out) for out in ("free", "out", "one"))
    assert free["cost_of_balance"] == pytest.approx(0, abs=1e-6)
    assert held["cost_of_balance"] > 1e-5
    assert held["unbalanced_cosine"] >= free["mean_cosine"] - 1e-6  # balance may lead to a better
    cost = held["unbalanced_cosine"] - held["mean_cosine"]
    assert held["cost_of_balance"] == pytest.approx(cost, abs=1e-6)
    assert held["mean_cosine"] >= one["mean_cosine"] - 1e-6
    assert 0 < held["agreement"] < 1
    assert one["agreement"] is None


@pytest.mark.parametrize("balance", ["rows", "tokens"])
def test_two_stages_deal_whole_fine_clusters(folder, balance):
    assert partition(folder, "--num-fine", "12", "--balance", balance) == 0
    arrays, labels = rule_of(folder / "out"), labels_of(folder / "out")
    assert arrays["centroids"].shape == (12, 8)
    assert set(arrays["cluster_of"].tolist()) == {0, 1, 2}
    fine = cosines_of(arrays).argmax(axis=1)
    np.testing.assert_array_equal(arrays["cluster_of"][fine], labels)
    said = [row_of(n)["conversations"] for n in range(NUM_ROWS)]
    loads = np.array([sum(len(turn["value"].encode()) for turn in turns) for turns in said])
    loads = loads if balance == "tokens" else np.ones(NUM_ROWS)
    held, of_fine = np.bincount(labels, loads), np.bincount(fine, loads)
    assert held.max() - loads.sum() / NUM_EXPERTS <= of_fine.max()
    margins = np.sort(
        [cosines_of(arrays)[:, arrays["cluster_of"] == k].max(1) for k in range(3)], 0
    )
    median = np.median(margins[-1] - margins[-2])
    assert manifest_of(folder / "out")["margins"]["0.5"] == pytest.approx(median, abs=1e-6)
    assert manifest_of(folder / "out")["moved"] == 0
    assert route(folder) == 0
    assert assigned(folder / "routed") == assigned(folder / "out")


MISMATCHED = {
    "balance": (
        ["--balance", "none"],
        ("`balance` must be rows or tokens if `num_fine` is given; got balance = 'none'"),
    ),
    "restarts": (
        ["--restarts", "2"],
        ("`restarts` must be 1 if `num_fine` is given; got restarts = 2"),
    ),
    "too few": (["--num-fine", "2"], "`num_fine` must be at least 3; got num_fine = 2"),
    "too many": (["--num-fine", "51"], "`num_fine` must lie in [1, 50]; got num_fine = 51"),
}


@pytest.mark.parametrize(("more", "message"), MISMATCHED.values(), ids=MISMATCHED)
def test_two_stages_refuse_what_does_not_go_with_them(folder, capsys, more, message):
    fine = [] if "--num-fine" in more else ["--num-fine", "12"]
    assert partition(folder, *fine, *more) == 2
    assert message in refusal(capsys)


def test_repeated_and_missing_ids_are_counted_or_refused(folder, capsys):
    rows = [row_of(number) for number in range(NUM_ROWS)]
    rows[7]["id"] = rows[9]["id"] = "r3"
    del rows[20]["id"], rows[23]["id"]
    rows[21]["id"], rows[22]["id"] = 5, "5"  # not equal
    (folder / "rows.jsonl").write_bytes(jsonl(rows))
    assert partition(folder) == 0
    manifest = manifest_of(folder / "out")
    assert (manifest["repeated_ids"], manifest["rows_without_id"]) == (2, 2)
    capsys.readouterr()
    assert partition(folder, "--unique-ids", out="other") == 2
    assert refusal(capsys).endswith(
        "must have an `id` of its own; got rows with a repeated id = [7, 9]."
    )
    rows[7]["id"], rows[9]["id"] = "r7", "r9"
    (folder / "rows.jsonl").write_bytes(jsonl(rows))
    assert partition(folder, "--unique-ids", out="other") == 2
    assert refusal(capsys).endswith("got rows without an id = [20, 23].")
    assert not (folder / "other").exists()


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_an_array_reads_as_lines_do(folder, monkeypatch, indent, chunk):
    monkeypatch.setattr(records, "_CHUNK", chunk)
    rows = [row_of(number) for number in range(12)]
    rows[0] |= {"x": [1, -2.5e-3, True, None, '}]"\\', "\n\U0001f600"]}
    (folder / "a.json").write_text(json.dumps(rows, indent=indent), "utf-8")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    array, lines = (list(read_records(folder / name)) for name in ("a.json", "a.jsonl"))
    assert [r.fields for r in array] == [r.fields for r in lines] == rows
    assert [r.number for r in array] == list(range(12))
    assert array[1].text.decode() == json.dumps(rows[1], ensure_ascii=False)
    text = (folder / "a.json").read_text("utf-8").splitlines()
    starts = [n for n, line in enumerate(text, 1) if line == "  {"]
    assert [r.line for r in array] == (starts if indent else [1] * 12)


def test_an_array_gives_the_partition_of_its_lines(folder):
    rows = [row_of(number) for number in range(NUM_ROWS)]
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    assert partition(folder, out="lines") == partition(folder, input="rows.json", out="array") == 0
    for lines, array in zip(assigned(folder / "lines"), assigned(folder / "array"), strict=True):
        assert [json.loads(line) for line in lines] == [json.loads(line) for line in array]
        assert [json.dumps(json.loads(a), ensure_ascii=False).encode() for a in array] == [
            line.rstrip(b"\n") for line in array
        ]


def test_half_a_surrogate_pair_survives_an_array(folder):
    (folder / "a.json").write_text('[{"x": "\\ud83d"}]')
    (record,) = read_records(folder / "a.json")
    assert record.text == b'{"x": "\\ud83d"}'


def test_the_manifest_tells_the_hashes(folder):
    assert partition(folder) == 0
    out = folder / "out"
    manifest, files = manifest_of(out), contents(out)
    del files["manifest.json"]
    assert manifest["files"] == {n: hashlib.sha256(c).hexdigest() for n, c in files.items()}
    given = {"input": "rows.jsonl", "features": "features.npy"}
    for name, path in given.items():
        content = (folder / path).read_bytes()
        assert manifest["inputs"][name] == hashlib.sha256(content).hexdigest()


# ── again, and halfway ──────────────────────────────────────────────────────────────────────────


def test_the_same_command_writes_the_same_and_then_nothing(folder, capsys):
    assert partition(folder, "--seed", "3") == partition(folder, "--seed", "3", out="twin") == 0
    before = contents(folder / "out")
    assert before == contents(folder / "twin")
    times = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    capsys.readouterr()
    assert partition(folder, "--seed", "3") == 0
    assert "finished already" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    assert partition(folder, "--seed", "4") == 2
    assert "`out` must be a new folder, or one that was finished with these settings" in refusal(
        capsys
    )
    (folder / "out" / "dense.jsonl").write_text("")
    assert partition(folder, "--seed", "3") == 2
    assert "as its manifest says; got SHA-256 =" in refusal(capsys)


def test_a_folder_of_something_else_is_refused(folder, capsys):
    (folder / "out").mkdir()
    (folder / "out" / "manifest.json").write_text('["mine"]')
    assert partition(folder) == 2
    assert "`out` must be a new folder" in refusal(capsys)
    assert list((folder / "out").iterdir()) == [folder / "out" / "manifest.json"]


@pytest.mark.parametrize("where", ["rows", "centroids", "manifest", "move"])
def test_killed_halfway_leaves_nothing_that_looks_finished(folder, monkeypatch, where):
    def killed(*_, **__):
        raise KeyboardInterrupt

    def half(path):
        for record in read_records(path):
            if record.number == NUM_ROWS // 2 and (folder / "out.partial").exists():
                killed()
            yield record

    with monkeypatch.context() as patch:
        if where == "rows":
            patch.setattr(writing, "read_records", half)
        elif where == "centroids":
            patch.setattr(writing, "rule_to_bytes", killed)
        elif where == "manifest":
            patch.setattr(writing.platform, "python_version", killed)
        else:
            patch.setattr(os, "replace", killed)
        assert partition(folder) == 130  # as Ctrl-C ends a command
    assert not (folder / "out").exists()
    assert (folder / "out.partial").exists()
    (folder / "out.partial" / "left.jsonl").write_text("from before")
    assert partition(folder) == 0
    assert not (folder / "out.partial").exists()
    assert set(contents(folder / "out")) == {*manifest_of(folder / "out")["files"], "manifest.json"}


def test_an_input_that_changes_on_the_way_is_refused(folder, monkeypatch, capsys):
    def changing(path):
        yield from read_records(path)
        path.write_bytes(path.read_bytes() + b"\n")

    monkeypatch.setattr(writing, "read_records", changing)
    assert partition(folder) == 2
    assert "must not change while it is read" in refusal(capsys)
    assert not (folder / "out").exists()


# ── route ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("balance", ["rows", "tokens", "none"])
def test_routing_the_rows_clustered_gives_their_experts_back(folder, balance):
    assert partition(folder, "--balance", balance) == 0
    assert route(folder) == 0
    first, second = assigned(folder / "out"), assigned(folder / "routed")
    moved = sum(len(set(a) - set(b)) for a, b in zip(first, second, strict=True))
    assert moved <= (0 if balance == "none" else 3)  # at ties
    names = contents(folder / "routed").keys()
    assert names == contents(folder / "out").keys()
    assert names == {*manifest_of(folder / "routed")["files"], "manifest.json"}


@pytest.mark.usefixtures("uneven")
def test_routing_charges_a_row_by_its_weight(folder):
    path = folder / "weights.npy"
    np.save(path, 1 + np.arange(NUM_ROWS)[::-1] ** 2 % 97)
    more = ["--weights", str(path)]
    assert partition(folder, "--balance", "tokens", *more, features="uneven.npy") == 0
    assert route(folder, *more, features="uneven.npy") == 0
    first, second = assigned(folder / "out"), assigned(folder / "routed")
    # At most 1 at a tie; 4 if every row were charged the same.
    assert sum(len(set(a) - set(b)) for a, b in zip(first, second, strict=True)) <= 1


def test_routing_needs_a_whole_partition(folder, capsys):
    assert route(folder) == 2
    assert "`partition` must be the folder of a finished partition" in refusal(capsys)
    assert partition(folder) == 0
    np.save(folder / "narrow.npy", FEATURES[:, :5])
    capsys.readouterr()
    assert route(folder, features="narrow.npy") == 2
    assert "`features` must have 8 columns, as many as" in refusal(capsys)
    rule = rules.read_rule(folder / "out" / "centroids.safetensors")
    same = np.concatenate([FEATURES[:7], np.asarray(rule.clusters.mean)[None], FEATURES[8:]])
    np.save(folder / "same.npy", same)
    assert route(folder, features="same.npy") == 2
    assert (
        "must differ from the mean of those clustered in every row; got rows equal to the mean = "
        "[7]"
    ) in (refusal(capsys))
    (folder / "out" / "centroids.safetensors").write_bytes(b"")
    assert route(folder) == 2
    line = refusal(capsys)
    assert line.startswith("python -m dfm_jax route: The SHA-256 of")


def test_new_rows_without_a_feature_are_spread_or_named(folder):
    assert partition(folder) == 0
    np.savez(folder / "none.npz", features=FEATURES[:0], rows=np.zeros(0, int))
    assert route(folder, features="none.npz") == 0
    assert manifest_of(folder / "routed")["unrouted"] == NUM_ROWS
    assert route(folder, "--no-feature", "random", features="none.npz", out="random") == 0
    manifest = manifest_of(folder / "random")
    assert sum(manifest["sizes"]) == manifest["random"] == NUM_ROWS
    assert min(manifest["sizes"]) > 5


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


def with_nan():
    bad = FEATURES.copy()
    bad[[4, 11]] = np.nan
    return bad


BAD_FEATURES = {
    "too few": (FEATURES[:-1], "must have 50 rows; got len(features) = 49."),
    "NaN": (with_nan(), "must be finite in every row; got rows that are not finite = [4, 11]."),
    "pickled": (FEATURES.astype(object), "must be an .npy or .npz file of numbers"),
}


@pytest.mark.parametrize(("features", "message"), BAD_FEATURES.values(), ids=BAD_FEATURES)
def test_bad_features_are_refused(folder, capsys, features, message):
    np.save(folder / "bad.npy", features, allow_pickle=True)
    assert partition(folder, features="bad.npy") == 2
    line = refusal(capsys)
    assert line.startswith("python -m dfm_jax partition: ")
    assert message in line
    assert not (folder / "out").exists()


BAD_INPUT = {
    "broken": (b'{"conversations": []}\n{"id": \n', "line 2: the row must be JSON in UTF-8"),
    "no object": (
        b'{"conversations": []}\n3\n',
        "line 2: the row must be a JSON object; got type(row) = int",
    ),
    "not UTF-8": (b'{"id": "\xff"}\n', "line 1: the row must be JSON in UTF-8"),
    "a mark before it": (
        b'\xef\xbb\xbf{"conversations": []}\n',
        "line 1: the row must be JSON in UTF-8",
    ),
    "NaN": (
        b'{"conversations": [], "x": NaN}\n',
        "line 1: the row must be JSON in UTF-8; got an error at column 28: NaN",
    ),
    "a key twice": (
        b'{"id": 1, "id": 2}\n',
        "the row must be JSON in UTF-8; got an error at column 11: the key 'id' comes",
    ),
    "blank": (
        b'{"conversations": []}\n\n \n{"conversations": []}\n',
        "line 2: a line between rows must not be blank",
    ),
    "empty": (b"", "must hold a row; got number of rows = 0"),
    "only blanks": (b"\n \n", "must hold a row; got number of rows = 0"),
    "empty array": (b"\n [ ]\n", "must hold a row; got number of rows = 0"),
    "no conversation": (b'{"id": 1}\n', "line 1: `conversations` must be a list"),
    "no text": (b'{"conversations": [{"value": 3}]}', "line 1: `conversations` must be a list"),
    "broken array": (
        b'[{"conversations": []},\n{"b" 2},\n' + b" " * 99 + b"{}]",
        "line 2: the row must be JSON",
    ),
    "cut array": (b'[{"id": 1, "conversations":\n[]}', "line 2: `,` or `]` must follow"),
    "cut string": (
        b'[{"conversations": []},\n{"b": "',
        "line 2: the row must be JSON; got an error: Unterminated",
    ),
    "a comma too many": (b'[{"conversations": []},\n]', "line 2: the row must be JSON"),
    "no comma": (b'[{"conversations": []}\n{}]', "line 2: `,` or `]` must follow"),
    "more behind": (b'[{"conversations": []}]\n{}', "line 2: nothing must follow the array"),
    "array of numbers": (b"[\n1]", "line 2: the row must be a JSON object; got type(row) = int"),
    "array not UTF-8": (b'[{"id": "\xff"}]', "line 1: the text from this line on must be UTF-8"),
    "array with infinity": (
        b'[{"id": 1e999}]',
        "line 1: the row must be JSON; got an error: the number 1e999",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_refused_by_file_and_line(folder, capsys, content, message):
    (folder / "bad.jsonl").write_bytes(content)
    assert partition(folder, input="bad.jsonl") == 2
    line = refusal(capsys)
    assert f"{folder / 'bad.jsonl'}" in line
    assert message in line
    assert not (folder / "out").exists()


def test_blank_lines_at_the_end_hold_no_row(folder):
    with (folder / "rows.jsonl").open("ab") as file:
        file.write(b"\n  \n")
    assert len(list(read_records(folder / "rows.jsonl"))) == NUM_ROWS


def test_a_broken_array_is_refused_before_it_is_read_whole(folder, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK", 256)
    read = []
    grow = records._Text.grow
    monkeypatch.setattr(records._Text, "grow", lambda self: (read.append(1), grow(self)))
    (folder / "a.json").write_text('[{"a": 1}, {"b" 2}, ' + "{}, " * 100_000 + "{}]")
    with pytest.raises(ValueError, match="delimiter"):
        list(read_records(folder / "a.json"))
    assert len(read) == 1


@pytest.mark.parametrize("array", [False, True])
def test_memory_does_not_grow_with_the_rows(folder, monkeypatch, array):
    monkeypatch.setattr(records, "_CHUNK", 1 << 14)
    rows = [json.dumps(row_of(number)) for number in range(20_000)]
    text = "[" + ",\n".join(rows) + "]" if array else "\n".join(rows)
    (folder / "long").write_text(text)
    tracemalloc.start()
    count = sum(1 for _ in read_records(folder / "long"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 400_000 < len(text) / 10


def test_fewer_rows_than_experts_are_refused(folder, capsys):
    assert partition(folder, k=51) == 2
    assert "`num_experts` must lie in [1, 50]; got num_experts = 51." in refusal(capsys)
    np.savez(folder / "two.npz", features=FEATURES[:2], rows=np.arange(2))
    assert partition(folder, features="two.npz") == 2
    assert "At least 3 rows must have a feature; got rows with a feature = 2." in refusal(capsys)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize("name", ["evil.npy", "evil.npz", "evil.pth", "evil.pkl"])
@pytest.mark.parametrize("option", ["features", "weights"])
def test_a_file_with_code_in_it_is_refused_and_nothing_executes(
    folder, monkeypatch, capsys, name, option
):
    monkeypatch.chdir(folder)
    objects = np.array([Evil()], dtype=object)
    with (folder / name).open("wb") as file:
        if name.endswith("npy"):
            np.save(file, objects, allow_pickle=True)
        elif name.endswith("npz"):
            np.savez(file, features=objects, rows=objects)
        else:
            pickle.dump(Evil(), file)
    more = ["--balance", "tokens", "--weights", name] if option == "weights" else []
    assert partition(folder, *more, features=name if option == "features" else "features.npy") == 2
    line = refusal(capsys)
    assert (
        "file of numbers; " in line
        or "must be one array of numbers; got weights.dtype = 'none'" in line
    )
    assert not (folder / "ran").exists()


def test_centroids_with_code_in_them_are_refused(folder, monkeypatch, capsys):
    """Even where the manifest agrees with them."""
    monkeypatch.chdir(folder)
    assert partition(folder) == 0
    capsys.readouterr()
    path, manifest = folder / "out" / "centroids.safetensors", manifest_of(folder / "out")
    whole = path.read_bytes()
    save_file({"centroids": FEATURES}, folder / "other")
    bad = {
        "must hold safetensors; got a damaged file": (pickle.dumps(Evil()), whole[:-1], b""),
        "must hold the arrays centroids, cluster_of, mean, prices": [
            (folder / "other").read_bytes()
        ],
    }
    for message, contents in bad.items():
        for content in contents:
            path.write_bytes(content)
            manifest["files"][path.name] = hashlib.sha256(content).hexdigest()
            manifest["sha256"] = manifest_digest(manifest)
            (folder / "out" / "manifest.json").write_text(json.dumps(manifest))
            assert route(folder) == 2
            assert message in refusal(capsys)
    assert not (folder / "ran").exists()


BAD_WEIGHTS = {
    "too few": (np.ones(3), "must hold 50 numbers"),
    "negative": (-np.ones(NUM_ROWS), "must lie in [0, inf)"),
    "NaN": (np.full(NUM_ROWS, np.nan), "must lie in [0, inf)"),
    "pickled": (np.array([None] * NUM_ROWS), "must be an .npy file of numbers"),
    "all 0": (np.zeros(NUM_ROWS), "`weights` must not all be 0"),
}


@pytest.mark.parametrize(("weights", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights_are_refused(folder, capsys, weights, message):
    path = folder / "weights.npy"
    np.save(path, weights, allow_pickle=True)
    assert partition(folder, "--balance", "tokens", "--weights", str(path)) == 2
    assert message in refusal(capsys)


def test_weights_go_with_tokens_only(folder, capsys):
    assert partition(folder, "--weights", str(folder / "features.npy")) == 2
    assert "`weights` must only be given if `balance` is tokens" in refusal(capsys)


@pytest.mark.parametrize("missing", ["input", "features"])
def test_a_missing_file_is_named(folder, capsys, missing):
    assert partition(folder, **{missing: "absent"}) == 2
    assert str(folder / "absent") in refusal(capsys)


@pytest.mark.parametrize("command", ["partition", "route"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert f"python -m dfm_jax {command} --input" in capsys.readouterr().out


def test_failed_pictures_make_no_expert_of_their_own(folder, capsys):
    """Zeros, which a failed encoder leaves, are named; they were a cluster of their own."""
    failed = FEATURES.copy()
    failed[5:25] = 0
    np.save(folder / "failed.npy", failed)
    assert partition(folder, features="failed.npy") == 0
    out = capsys.readouterr().out
    assert "Without a feature: feature is zero 20." in out
    assert "Kept as they are, and not used: column `image` (50 rows)." in out
    told = [json.loads(line) for line in lines_of(folder / "out" / "unrouted.jsonl")]
    assert [(row["row"], row["reason"]) for row in told] == [
        (row, "feature is zero") for row in range(5, 25)
    ]
    np.savez(
        folder / "whole.npz",
        features=np.delete(FEATURES, range(5, 25), 0),
        rows=[*range(5), *range(25, len(FEATURES))],
    )
    assert partition(folder, out="without", features="whole.npz") == 0
    assert assigned(folder / "out") == assigned(folder / "without")
    assert route(folder, features="failed.npy") == 0
    assert manifest_of(folder / "routed")["without_feature"] == {"feature is zero": 20}
