"""What a newcomer writes first works as guessed; and what `import dfm_jax` promises."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import dfm_jax


def test_every_module_is_reached_by_its_name_and_known_to_type_checkers():
    modules = {m.name for m in pkgutil.iter_modules(dfm_jax.__path__) if m.name[0] != "_"}
    for name in ("likelihoods", "sampling", "fast", "boundary", "models", "training", "theory"):
        assert getattr(dfm_jax, name).__name__ == f"dfm_jax.{name}"
        assert name in dir(dfm_jax)
    tree = ast.parse(Path(dfm_jax.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    assert {
        line.names[0].name for line in block.body if isinstance(line, ast.ImportFrom)
    } == modules
    assert modules <= set(dir(dfm_jax))
    assert not hasattr(dfm_jax, "nonsense")


def test_the_ground_truth_is_imported_without_jax():
    program = "import sys, dfm_jax.exact; sys.exit(bool({'jax', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
