"""The command score: it merges the answers of experts and scores them as a benchmark does."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dfm_jax.cli.arguments import KeepBuffers
from dfm_jax.cli.compare_answers import Benchmark
from dfm_jax.durable import write_file

if TYPE_CHECKING:
    from dfm_jax.scoring import Merged, Question


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score the answers to a benchmark, which several experts may have given.

    The files of answers are merged: every question must be answered exactly once. Questions are
    JSONL of `question_id` and `answer` (or `answers`), with `category`, `image`, `choices` or
    `box_scale` where the benchmark needs them; answers are JSONL of `question_id` and `text`. MME's
    own form, a folder of text files that hold the truths too, is scored without --questions.

    For example:

        python -m dfm_jax score --benchmark pope --questions pope.jsonl
        --predictions expert_0.jsonl expert_1.jsonl --json pope.json

        python -m dfm_jax score --benchmark mme --predictions mme_folder
    """

    benchmark: Benchmark
    """The benchmark whose definition of the score is used."""
    questions: Path | None = None
    """A JSONL file of the questions and their answers; not for MME's own folder."""
    predictions: tuple[Path, ...]
    """JSONL files of the model's answers: one file for each expert, or one file in all. Of MME also
    the folder that its own evaluation takes."""
    box_scale: Literal["pixels", "0-1", "0-1000"] | None = None
    """The unit of the boxes in the answers to RefCOCO; the questions name the unit of theirs."""
    json: Path | None = None
    """A file to which the scores are written as JSON too."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Print the scores, and write them if --json is given."""
        from dfm_jax.scoring import score

        questions, merged = self._read()
        found = {"benchmark": self.benchmark, "questions": len(questions), "files": merged.files}
        found |= score(self.benchmark, questions, merged.texts, box_scale=self.box_scale)
        for name, value in found["scores"].items():
            print(f"{name:24} {value:10.4f}")
        for category, scores in found.get("categories", {}).items():
            shown = ", ".join(
                f"{name} {value:.4f}" for name, value in scores.items() if name != "questions"
            )
            print(f"  {category} ({scores['questions']}): {shown}")
        if self.json is not None:
            write_file(self.json, json.dumps(found, indent=1) + "\n")
        return 0

    def _read(self) -> "tuple[list[Question], Merged]":
        from dfm_jax.checks import require
        from dfm_jax.scoring import Merged, merge_predictions, read_mme_folder, read_questions

        folders = [path for path in self.predictions if path.is_dir()]
        if self.benchmark == "mme" and folders:
            rule = "`predictions` must be one folder in MME's form, or files"
            require(len(self.predictions) == 1, rule, list(map(str, self.predictions)))
            rule = "`questions` must not be given, because the folder of MME holds the truths"
            require(self.questions is None, rule, self.questions)
            questions, texts = read_mme_folder(folders[0])
            return questions, Merged(texts, {str(folders[0]): len(texts)})
        require(not folders, "`predictions` must be files", folders[0] if folders else None)
        rule = "`questions` must be given, unless the answers are a folder in MME's form"
        require(self.questions is not None, rule, self.questions)
        assert self.questions is not None
        questions = read_questions(self.questions, self.benchmark)
        return questions, merge_predictions(questions, self.predictions)
