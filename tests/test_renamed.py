"""The names of version 0.1: each is still there, an alias that warns, or says where it went."""

import ast
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from public_names import public_names, read_names

import dfm_jax
from dfm_jax import cli
from dfm_jax._renamed import GONE, MODULES, NAMES

TESTS = Path(__file__).parent
OLD = read_names(TESTS / "names_of_0_1.txt")
NEW = public_names(TESTS.parent)
DEPARTED_MODULES = {f"dfm_jax.{name}" for name in GONE if f"dfm_jax.{name}" in OLD}


def found(name):
    """What a name below `dfm_jax` is today."""
    module, _, attribute = f"dfm_jax.{name}".rpartition(".")
    if f"dfm_jax.{name}" in NEW:
        return importlib.import_module(f"dfm_jax.{name}")
    return getattr(importlib.import_module(module), attribute)


def imported_anew(module):
    """A module of 0.1, as by the first import of a process, and how often that warned."""
    sys.modules.pop(module, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return importlib.import_module(module), [str(warning.message) for warning in caught]


def read(module, name):
    """`module.name`, and what that warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return getattr(module, name), caught


def rule(old, new):
    return (
        f"The name is `dfm_jax.{new}` since version 0.2; got `dfm_jax.{old}`, which version 0.3 no "
        f"longer has."
    )


def test_the_tables_name_what_was_public_in_0_1_and_is_no_longer():
    old = {module.removeprefix("dfm_jax.") for module in OLD}
    assert set(MODULES) <= old - {module.removeprefix("dfm_jax.") for module in NEW}
    for name in {*NAMES, *(set(GONE) - {name[8:] for name in DEPARTED_MODULES})}:
        module, _, attribute = f"dfm_jax.{name}".rpartition(".")
        assert attribute in OLD[module], name
        assert attribute not in NEW.get(module, ()), name
    assert not (set(MODULES) | set(NAMES)) & set(GONE)


@pytest.mark.parametrize(("old", "new"), MODULES.items(), ids=MODULES)
def test_a_module_of_0_1_is_the_new_one_or_finds_its_names(old, new):
    if old.startswith("fast."):  # of a package that is a module now: its names warn, and not it
        importlib.import_module("dfm_jax.fast")
        module = importlib.import_module(f"dfm_jax.{old}")
    else:
        module, warned = imported_anew(f"dfm_jax.{old}")
        assert warned[0] == rule(old, new)
    names, target = OLD[f"dfm_jax.{old}"], found(new)
    if module is target:
        assert names <= set(dir(target))
        return
    for name in names:
        if f"{old}.{name}" not in GONE:
            value, caught = read(module, name)
            assert value is found(NAMES.get(f"{old}.{name}", f"{new}.{name}")), name
            assert caught[-1].category is DeprecationWarning
            assert f"got `dfm_jax.{old}.{name}`" in str(caught[-1].message)
    with pytest.raises(AttributeError, match="nonsense"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize(("old", "new"), NAMES.items(), ids=NAMES)
def test_a_name_of_0_1_is_the_very_object_and_warns_where_it_is_written(old, new):
    module, _, name = f"dfm_jax.{old}".rpartition(".")
    home = importlib.import_module(module)
    value, caught = read(home, name)
    assert value is found(new)
    if name in vars(home):  # imported there for its own use
        return
    assert [str(warning.message) for warning in caught] == [rule(old, new)]
    assert caught[0].category is DeprecationWarning
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", sorted(set(GONE) - {name[8:] for name in DEPARTED_MODULES}))
def test_a_name_that_left_says_where_to(name):
    module, _, attribute = f"dfm_jax.{name}".rpartition(".")
    with pytest.raises(AttributeError, match=re.escape(GONE[name])):
        getattr(importlib.import_module(module), attribute)
    assert not hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("module", sorted(DEPARTED_MODULES))
def test_a_module_that_left_says_where_to(module):
    assert module not in NEW
    with pytest.raises(ImportError, match=re.escape(GONE[module[8:]])):
        importlib.import_module(module)


def test_every_public_name_of_0_1_is_there_or_an_alias_or_departed():
    unknown = []
    for module, names in OLD.items():
        inside = module.removeprefix("dfm_jax").lstrip(".")
        if module in DEPARTED_MODULES:
            continue
        if module not in NEW and inside not in MODULES:
            unknown.append(module)
        for name in names:
            old = f"{inside}.{name}".lstrip(".")
            here = name in NEW.get(module, ()) or f"{module}.{name}" in NEW
            moved = inside in MODULES and name in NEW[f"dfm_jax.{MODULES[inside]}"]
            if not (here or moved or old in MODULES or old in NAMES or old in GONE):
                unknown.append(old)
    assert not unknown


def test_what_says_where_to_looks_at_what_exists():
    named = {
        name
        for sentence in GONE.values()
        for name in re.findall(r"(?:dfm_jax|experiments)(?:\.\w+)+", sentence)
    }
    for name in named:
        module, _, attribute = name.rpartition(".")
        home = module if importlib.util.find_spec(module) else module.rpartition(".")[0]
        source = importlib.import_module(home)
        is_module = hasattr(source, "__path__") and importlib.util.find_spec(name)
        assert is_module or hasattr(source, attribute) or attribute in ("measure", "batches"), name


def test_the_first_lines_of_0_1(tmp_path):
    program = tmp_path / "old.py"
    lines = (
        "import dfm_jax; assert not {'experts', 'gates'} & set(dir(dfm_jax))",
        "from dfm_jax import experts",
        "from dfm_jax.objectives import generalised_kl",
        "import dfm_jax.gates.cut",
        "assert experts.mix_velocities is dfm_jax.mixture.mix",
        "assert dfm_jax.gates.bayes_gate is dfm_jax.mixture.bayes_gate",
    )
    program.write_text("\n".join(lines))
    command = [sys.executable, "-W", "default", str(program)]
    paths = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = {int(n) for n in re.findall(r"old\.py:(\d+): DeprecationWarning", done.stderr)}
    assert told == {2, 3, 4, 5, 6}, done.stderr
    assert done.stderr.count("DeprecationWarning") == done.stderr.count("old.py:")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("from dfm_jax.data import load_kjv", GONE["data.load_kjv"]),
        ("from dfm_jax.data import emoji", GONE["data.emoji"]),
        ("from dfm_jax.experts import expert_posterior", GONE["experts.expert_posterior"]),
        ("from dfm_jax.parallel import mix_over_devices", GONE["parallel.mix_over_devices"]),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_import_of_what_left_says_where_to(line, sentence):
    with pytest.raises(ImportError, match=re.escape(sentence)):
        exec(line, {"__name__": "user"})


def test_no_line_of_ours_writes_an_old_name():
    """A warning is an error in the tests; this also reads what they do not run."""
    old = {f"dfm_jax.{name}" for name in (*MODULES, *GONE)}
    folders = [TESTS.parent / name for name in ("dfm_jax", "experiments", "notebooks")]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not names & old, path


def test_no_old_name_is_listed():
    assert "generalised_kl" not in dir(dfm_jax.objectives)
    assert "load_kjv" not in dir(dfm_jax.data)


def test_renames_of_functions_lead_to_what_exists():
    """The table of `frozen_outputs.py --renames`; a row of three words renames an argument."""
    rows = (TESTS / "renames_since_0_1.txt").read_text("utf-8").splitlines()
    table = dict(row.split() for row in rows)
    assert len(table) == len(rows)
    for old, new in table.items():
        if old.count(".") == 1:
            assert found(new), old
            assert NAMES.get(old) == new or old in GONE or old.split(".")[0] in MODULES, old
        else:
            function = old.rpartition(".")[0]
            assert new in inspect.signature(found(table.get(function, function))).parameters, old


def test_an_old_command_names_the_new_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.parsed(["gather", "run"])
    line = "python -m dfm_jax: The command is make-ensemble since version 0.2; got gather.\n"
    assert capsys.readouterr().err == line
