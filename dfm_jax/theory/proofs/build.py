"""Check every proof with Coq, and write `index.json` and `definitions.json` beside the sources.

    python -m dfm_jax.theory.proofs.build

The index lists every theorem with its statement as Coq prints it, what it assumes, and the hash of
every source; the other file has all definitions as Coq extracts them. Nothing is installed.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dfm_jax.json_text import read_json

FOLDER = Path(__file__).parent
FILES = (
    "Basics",
    "Paths",
    "Masks",
    "Velocities",
    "Experts",
    "Steps",
    "Autoregression",
    "Samplers",
    "Choices",
    "Information",
    "Accounting",
    "Bridges",
    "Falsifiers",
    "Objectives",
    "Continuity",
)
PACKAGES = (
    "coq",
    "libcoq-mathcomp",
    "libcoq-mathcomp-algebra-tactics",
    "libcoq-mathcomp-analysis",
)
WRITTEN_FOR = {"coq": "8.16.1", "mathcomp": "1.15.0", "mathcomp-analysis": "0.6.0"}
_QUIET = ("-w", "-notation-overridden,-ambiguous-paths,-extraction-reserved-identifier")
_THEOREM = re.compile(r"^Theorem (([A-Z]\d+)(?:_\w+)?)\b", re.MULTILINE)
_DEFINITION = re.compile(r"^(?:Definition|Fixpoint) (\w+)", re.MULTILINE)


class RefusedError(RuntimeError):
    """Coq does not accept a proof, or what it prints is not understood."""


def sources() -> dict[str, str]:
    """The text of every file of proofs, by name and in the order of compilation."""
    return {name: (FOLDER / f"{name}.v").read_text("utf-8") for name in FILES}


def digest(text: str) -> str:
    """The SHA-256 of a source."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def theorems(text: str) -> list[tuple[str, str]]:
    """(name, label) of the theorems of a file."""
    return _THEOREM.findall(text)


def check_coq() -> str:
    """The path of `coqc`, or an error that says which packages bring it."""
    coqc = shutil.which("coqc")
    if coqc is None:
        raise SystemExit(
            "The proofs are checked by Coq, and `coqc` is not on the PATH. On Debian 12 it comes "
            f"with\n\n    apt-get install --no-install-recommends {' '.join(PACKAGES)}\n\n"
            "(1.6 GB). Without it the tests still check the proofs' index against the code."
        )
    said = subprocess.run([coqc, "--print-version"], capture_output=True, text=True, check=True)
    version = said.stdout.split()[0]
    if version != WRITTEN_FOR["coq"]:
        raise SystemExit(
            f"The proofs are written for Coq {WRITTEN_FOR['coq']}, as in Debian 12; later versions "
            f"have other names in their library. This one is {version}."
        )
    return coqc


def build(*, progress: bool = True) -> dict[str, Any]:
    """Compile all files in an empty folder; the index and the definitions.

    Raises:
        SystemExit: if Coq is missing or has another version.
        RefusedError: if a file does not compile, with what Coq says.
    """
    coqc, texts, seconds = check_coq(), sources(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in texts.items():
            (folder / f"{file}.v").write_text(text, "utf-8")
            start = time.perf_counter()
            _compile(coqc, folder, file)
            seconds[file] = time.perf_counter() - start
            if progress:
                print(f"{seconds[file]:7.1f} s  {file}.v", flush=True)
        found = [(file, *each) for file, text in texts.items() for each in theorems(text)]
        statements = _statements(coqc, folder, [theorem for _, theorem, _ in found])
        definitions = _definitions(coqc, folder, texts)
    index = {
        "written_for": WRITTEN_FOR,
        "sources": {f"{file}.v": digest(text) for file, text in texts.items()},
        "theorems": [
            {"name": theorem, "label": label, "file": f"{file}.v", **statements[theorem]}
            for file, theorem, label in found
        ],
    }
    return {"index": index, "definitions": definitions, "seconds": seconds}


def _compile(coqc: str, folder: Path, file: str) -> None:
    command = [coqc, *_QUIET, "-Q", ".", "DFM", f"{file}.v"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"Coq refuses {file}.v:\n{done.stdout}{done.stderr}")


def _statements(coqc: str, folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Statement and assumptions of every theorem, as Coq prints them."""
    lines = ["From mathcomp Require Import all_ssreflect all_algebra."]
    lines += [f"From DFM Require Import {' '.join(FILES)}.", "Set Printing Width 100."]
    lines += [
        "Import GRing.Theory. Local Open Scope ring_scope.",
        "Unset Printing Implicit Defensive.",
    ]
    for name in names:
        lines.append(f'Redirect "{name}.says" Check {name}.')
        lines.append(f'Redirect "{name}.assumes" Print Assumptions {name}.')
    (folder / "Statements.v").write_text("\n".join(lines) + "\n", "utf-8")
    _compile(coqc, folder, "Statements")
    found = {}
    for name in names:
        says = (folder / f"{name}.says.out").read_text("utf-8")
        assumes = (folder / f"{name}.assumes.out").read_text("utf-8")
        statement = says.split(":", 1)[1].strip()
        axioms = re.findall(r"^(?:\w+\.)*(\w+)\s*:", assumes, re.MULTILINE)
        closed = "Closed under the global context" in assumes
        if closed == bool([axiom for axiom in axioms if axiom != "Axioms"]):
            raise RefusedError(f"The assumptions of {name} are not understood:\n{assumes}")
        found[name] = {
            "statement": re.sub(r"\s*\n\s*", " ", statement),
            "assumptions": sorted(axiom for axiom in axioms if axiom != "Axioms"),
        }
    return found


def _definitions(coqc: str, folder: Path, texts: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Every definition that is a value, as the tree that Coq extracts."""
    names = [f"{file}.{name}" for file in texts for name in _DEFINITION.findall(texts[file])]
    lines = ["From mathcomp Require Import all_ssreflect all_algebra."]
    lines += [f"From DFM Require Import {' '.join(FILES)}.", "Require Import Extraction."]
    lines += ["Extraction Language JSON.", f"Separate Extraction {' '.join(names)}."]
    (folder / "Extracted.v").write_text("\n".join(lines) + "\n", "utf-8")
    _compile(coqc, folder, "Extracted")
    found = {}
    for file in texts:
        extracted = folder / f"{file}.json"
        if not extracted.exists():
            continue
        terms = []
        for declaration in read_json(extracted)["declarations"]:
            for term in declaration.get("fixlist", [declaration]):
                if "value" in term and term["value"]["what"] != "expr:dummy":
                    first = term.get("type", {}).get("left", {}).get("name", "")
                    takes_field = first.startswith("Ssrnum.Num.")
                    terms.append(
                        {"name": term["name"], "takes_field": takes_field, "value": term["value"]}
                    )
        found[file] = terms
    return found


def main() -> int:
    """Build, write the two files, and say what was proved; status 1 if Coq refuses a file."""
    try:
        built = build()
    except RefusedError as error:
        print(f"{error}\nNothing is written.", file=sys.stderr)
        return 1
    for name in ("index", "definitions"):
        text = json.dumps(built[name], ensure_ascii=False, indent=1 if name == "index" else None)
        (FOLDER / f"{name}.json").write_text(text + "\n", "utf-8")
    found = built["index"]["theorems"]
    labels = {theorem["label"] for theorem in found}
    print(f"{sum(built['seconds'].values()):7.1f} s  in all")
    print(f"{len(found)} theorems under {len(labels)} labels; index.json is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
