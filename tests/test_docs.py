"""The site's pages: their code runs and prints what they say, their commands and links exist.

That the site builds without a warning is said by the stage `lint and docs` of `.ci/run`.
"""

import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import docstring_equations
import generated_pages
import pytest

from dfm_jax import cli
from dfm_jax.theory.ledger import citations

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guides").glob("*.md")])
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BOUNDARY = "\x1e"


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def fences(page):
    """(language, text, whether it follows the fence before it at once), in order."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    end = 0
    for match in found:
        yield match[1], match[2], not page.read_text("utf-8")[end : match.start()].strip()
        end = match.end()


def examples(page):
    """Each fence of Python, with the text fence that stands right behind it, or None."""
    pairs = []
    before = ""
    for language, text, follows in fences(page):
        if language == "python":
            pairs.append((text, None))
        elif language == "text" and before == "python" and follows:
            pairs[-1] = (pairs[-1][0], text)
        before = language
    return pairs


# Page after page in one process, each as a `__main__` of its own: what one has compiled serves the
# next. A page that fails ends no other.
RUN_PAGES = f"""
import contextlib, io, json, os, sys, traceback, types

found, here = {{}}, os.getcwd()
for name, texts in json.load(sys.stdin).items():
    os.chdir(here)
    printed, error = [], ""
    page = sys.modules["__main__"] = types.ModuleType("__main__")
    for text in texts:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                exec(compile(text, name, "exec"), page.__dict__)
            except BaseException:
                error = traceback.format_exc()
                break
        printed.append(out.getvalue())
    found[name] = printed, error
print({BOUNDARY!r} + json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("in_float64", [False, True])
def test_code_runs_and_prints_what_the_page_says(in_float64):
    pages = {name_of(page): examples(page) for page in PAGES if examples(page)}
    texts = {name: [text for text, _ in pairs] for name, pairs in pages.items()}
    chosen = {n: t for n, t in texts.items() if in_float64 == ("jax_enable_x64" in "".join(t))}
    assert chosen
    done = subprocess.run(
        [sys.executable, "-c", RUN_PAGES],
        input=json.dumps(chosen),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rpartition(BOUNDARY)[2])
    assert not (errors := "".join(error for _, error in found.values())), errors
    for name in chosen:
        for printed, (text, said) in zip(found[name][0], pages[name], strict=True):
            assert said is None or printed.strip() == said.strip(), f"{name}: {text}"


def commands(page):
    """The commands of a page's shell fences, and README's indented ones, with lines joined."""
    text = page.read_text("utf-8")
    blocks = [body for language, body, _ in fences(page) if language in ("bash", "sh")]
    blocks += re.findall(r"^    ((?:python -m|make) .*)$", text, flags=re.MULTILINE)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


@pytest.mark.parametrize("page", [p for p in TEXTS if list(commands(p))], ids=name_of)
def test_commands_exist(page):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for words in commands(page):
        if words[0] == "make":
            for target in (w for w in words[1:] if "=" not in w):
                assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
        elif words[0].endswith("python") and words[1:3] == ["-m", "dfm_jax"]:
            assert words[3] == "--help" or hasattr(cli.parsed(words[3:]), "run"), words
        elif words[1:2] == ["-m"] and words[2].startswith("experiments."):
            try:
                found = find_spec(words[2])
            except ModuleNotFoundError:
                found = None
            file = words[2].replace(".", "/") + ".py"  # ours, or one that the reader writes
            assert found or file in page.read_text("utf-8"), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_into_the_package_lead_somewhere(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\{py:\w+\}`(?:[^`<]*<)?[~!]?([\w.]+)>?`", text):
        exists(target)


def exists(target):
    parts = target.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise LookupError(target)


def test_a_link_that_leads_nowhere_is_seen():
    with pytest.raises(AttributeError):
        exists("dfm_jax.mixture.mix_velocity")


# ── pages made of the code ──────────────────────────────────────────────────────────────────────


def test_every_citing_function_is_on_the_map():
    page = generated_pages.equations_by_module()
    functions = {f for found in citations().values() for f in found}
    assert len(functions) > 50
    for function in functions:
        layer, name = function.split(".")
        assert re.search(rf"`{name} <dfm_jax\.{layer}[\w.]*\.{name}>`", page), function


def test_every_room_has_a_page(tmp_path):
    layers = {p.stem for p in (ROOT / "dfm_jax").iterdir() if p.suffix == ".py" or p.is_dir()}
    public = {layer for layer in layers if not layer.startswith("_")}
    assert set(generated_pages.LAYERS) == public - {"cli"}


@pytest.mark.parametrize("words", generated_pages.COMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example(words):
    text = generated_pages.help_of(words)
    assert "For example:" in text
    assert f"python -m dfm_jax {' '.join(words)}" in text.split("For example:")[1]


# ── equations ───────────────────────────────────────────────────────────────────────────────────

LATEX = {
    "u_t(·, z) = Σ_k r_k(z, t) u_t^k(·, z)": (
        r"u_{t}(\cdot , z) = \sum _{k} r_{k}(z, t) u_{t}^{k}(\cdot , z)"
    ),
    "p̂_{1|t}^i(v | z)": r"\hat{p}_{1|t}^{i}(v \mid z)",
    "κ̇_t / (1 − κ_t) = −∂_t log(1 − κ_t)": (
        r"\dot{\kappa}_{t} / (1 - \kappa _{t}) = -\partial _{t} \log (1 - \kappa _{t})"
    ),
    "1[x ≠ m]": r"\mathbb{1}[x \ne m]",
    "KL(q ‖ q̂)": r"\operatorname{KL}(q \| \hat{q})",
    "Z = #{p > 0}": r"Z = \#\{p > 0\}",
    "∫_0^end u dt": r"\int _{0}^{\text{end}} u \,dt",
    "s_ik": r"s_{ik}",
    "m̂ / (√(v + 1e-3))": r"\hat{m} / (\sqrt{v + 10^{-3}})",
    "0 where κ = 1": r"0 \text{ where } \kappa = 1",
}


@pytest.mark.parametrize(("equation", "latex"), LATEX.items(), ids=LATEX)
def test_an_equation_in_latex(equation, latex):
    assert docstring_equations.to_latex(equation) == latex


def shown(docstring):
    lines = docstring.splitlines()
    docstring_equations.show_equations(None, "", "", None, None, lines)
    return "\n".join(lines)


def test_labels_become_the_tag_and_the_rest_stays():
    text = shown("What |p − q| is.\n\n    u = Σ_k r_k u^k   [D4, D13]\n\nArgs:\n    x: a Σ_k.\n")
    assert r"\sum _{k} r_{k} u^{k} \tag{D4, D13}" in text
    assert r"What \|p − q\| is." in text
    assert "Args:\n    x: a Σ_k." in text


def test_an_equation_that_nothing_indents_is_one():
    assert r"\tag{Q6}" in shown("What it is.\n\nTC(X) = Σ_i H(X^i) − H(X)   [Q6]\n\nIn nats.")
    assert "math" not in shown("κ[t, i] = 1[i < t].   [A1]\n\nAs a prior it is r_0.   [D7]")


def test_commands_and_layouts_are_no_equations():
    text = shown("Runs.\n\n    python -m dfm_jax verify\n\nWrites.\n\n    RUN/expert_003   a log")
    assert "math" not in text
    assert text.count(".. code-block:: text") == 2


def test_every_equation_of_the_package_has_balanced_braces_and_no_stranger():
    found = 0
    for layer in generated_pages.LAYERS:
        for name, thing in vars(importlib.import_module(f"dfm_jax.{layer}")).items():
            if name.startswith("_") or not (text := inspect.getdoc(thing)):
                continue
            for latex in re.findall(r"\\begin\{equation\*\}.*", shown(text)):
                found += 1
                bare = latex.replace(r"\{", "").replace(r"\}", "")
                assert bare.count("{") == bare.count("}"), latex
                assert bare.isascii() or set(bare) - set(map(chr, range(128))) <= {"–"}, latex
    assert found > 50
