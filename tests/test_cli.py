"""The command line: what it prints, writes and returns."""

import json
import subprocess
import sys

import jax
import pytest

from dfm_jax import cli, theory
from dfm_jax.cli import verification
from dfm_jax.theory.verification import MAIN_SHAPE, Row

KEYS = [
    "label",
    "statement",
    "source",
    "kind",
    "residual",
    "tolerance",
    "falsifier",
    "instances",
    "falsifier_instances",
    "passed",
    "proof",
]


@pytest.mark.slow
def test_verify_prints_a_line_per_statement_and_writes_json(tmp_path, capsys):
    path = tmp_path / "deep" / "verify.json"
    args = ["verify", "--labels", "P3", "D3", "--instances", "32", "--json", str(path)]
    assert cli.main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["P3", "D3"]
    assert lines[1].endswith("✓ Paths.P3")
    assert "2 statements, 2 of them proved in Coq, float64" in lines[-1]
    assert "all hold, and every falsifier fails" in lines[-1]
    rows = json.loads(path.read_text())
    assert [list(row) for row in rows] == [KEYS, KEYS]
    assert rows[0]["passed"] is True


def test_the_default_case_is_that_of_verify():
    default = verification.Verify()
    assert (default.V, default.N, default.K) == MAIN_SHAPE


def test_a_failing_statement_is_named_and_exits_1(monkeypatch, capsys):
    row = Row("P3", "words", "DFM", "definition", 0.5, 1e-12, float("nan"), 8, 4, passed=False)
    monkeypatch.setattr(theory, "verify", lambda *args, **kwargs: iter([row]))
    assert cli.main(["verify"]) == 1
    assert "FAILED: P3" in capsys.readouterr().out


def test_json_has_no_infinities(monkeypatch, tmp_path):
    row = Row("P3", "", "", "", float("inf"), 1e-12, float("nan"), 8, 4, passed=False)
    monkeypatch.setattr(theory, "verify", lambda *args, **kwargs: iter([row]))
    cli.main(["verify", "--json", str(tmp_path / "v.json")])
    (written,) = json.loads((tmp_path / "v.json").read_text())
    assert written["residual"] is None
    assert written["falsifier"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--labels", "D99"], "`labels` must name statements of the ledger"),
        (["--labels", "D4", "--V", "9"], "would take 17,496,000 bytes"),
        (
            ["--labels", "D4", "--instances", "3"],
            "`instances` must be at least 16; got instances = 3",
        ),
        (["--labels", "D4", "--seed", "4294967301"], "`seed` must be an integer in [0, 42"),
        (["--labels", "D4", "--K", "0"], "`num_experts` must be at least 1; got num_experts = 0"),
        (["--labels", "D4", "--devices", "99"], "The number of devices must lie in [1, 8]"),
    ],
)
def test_bad_input_is_one_line_and_exits_2(args, message, capsys, monkeypatch):
    # The devices of this process are made already; more cannot be.
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    assert cli.main(["verify", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("verify --seed 1 --labels D4 --seed 2", "`--seed` must be given once, with all its"),
        ("sample --run a --max_new 1 --max-new=2", "`--max-new` must be given once"),
        ("train --tensorboard --no-tensorboard", "At most one of `--tensorboard` and"),
        ("partition --no-feature random --no-feature unrouted", "`--no-feature` must be given"),
    ],
)
def test_an_option_that_comes_twice_is_refused(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"python -m dfm_jax {words.split()[0]}: {message}")


def test_equations_prints_the_ledger(capsys):
    assert cli.main(["equations"]) == 0
    assert capsys.readouterr().out.startswith("# The equation ledger")


@pytest.mark.slow
def test_verify_from_the_shell_on_8_virtual_devices():
    command = [sys.executable, "-m", "dfm_jax", "verify", "--labels", "P3", "--devices", "8"]
    command += ["--instances", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "all hold" in done.stdout


def test_one_document_has_no_interval():
    from dfm_jax.cli.training import _with_interval

    assert _with_interval((4.396, float("nan"))) == "4.3960 ± –"
    assert _with_interval((4.396, 0.1)) == "4.3960 ± 0.1000"


def test_a_falsifier_that_holds_is_told_from_a_residual_that_does_not_vanish():
    row = Row("X1", "words", "own", "identity", 1e-16, 1e-12, 0.0, 8, 4, passed=False)
    why = verification._why
    assert why(row) == "X1 (its falsifier misses a generic case by 0.0e+00 only)"
    assert why(row._replace(residual=0.5)) == "X1 (residual 5.0e-01, at most 1e-12)"
    assert why(row._replace(residual=float("nan"))).startswith("X1 (residual nan")
