"""The command questions: the questions of a benchmark, from the files that it publishes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfm_jax.durable import write_file


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Write the questions of a benchmark for `answer` and `score`, from the files it publishes.

    The files of VQA v2 are those of questions and of annotations, of POPE one for each kind of
    negative, of ChartQA those of people and of machines; MME is a folder. Rows of test sets whose
    truths are not public have none, and can be answered but not scored. Paths of pictures are
    relative to the folder that the benchmark's pictures come in.

    For example:

        python -m dfm_jax questions --benchmark gqa --files testdev_balanced_questions.json
        --out gqa.jsonl

        python -m dfm_jax questions --benchmark vqa --out vqa.jsonl --files
        v2_OpenEnded_mscoco_val2014_questions.json v2_mscoco_val2014_annotations.json

        python -m dfm_jax questions --benchmark mme --files MME_Benchmark --out mme.jsonl
    """

    benchmark: Literal[
        "vqa", "textvqa", "gqa", "scienceqa", "docvqa", "infovqa", "chartqa", "pope", "mme"
    ]
    """The benchmark."""
    files: tuple[Path, ...]
    """Its files, or its folder."""
    out: Path
    """The JSONL file to write."""
    split: str = "test"
    """The part of ScienceQA: train, val or test."""
    request: str | None = None
    """The last line of each question; without this option, the request of LLaVA-1.5 and InternVL2.5
    for a word, a phrase or a letter. An empty text leaves it out."""

    def run(self) -> int:
        """Write the file, and say how many questions it has."""
        from dfm_jax.scoring.published import published_questions

        rows = published_questions(
            self.benchmark, self.files, split=self.split, request=self.request
        )
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_file(self.out, "".join(lines))
        pictures = len({row["image"] for row in rows})
        print(f"{self.out}: {len(rows):,} questions about {pictures:,} pictures.")
        return 0
