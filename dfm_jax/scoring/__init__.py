"""Scores of answers as their benchmarks define them, and experts' answers merged."""

from dfm_jax.scoring.answers import (
    anls,
    chosen_letter,
    edit_distance,
    exact_match,
    normalised_answer,
    relaxed_match,
    vqa_accuracy,
)
from dfm_jax.scoring.benchmarks import BENCHMARKS, score
from dfm_jax.scoring.boxes import Box, box_match, overlap, read_box
from dfm_jax.scoring.predictions import Merged, Question, merge_predictions, read_questions
from dfm_jax.scoring.yes_no import (
    PairScores,
    YesNoScores,
    mme_says,
    pair_scores,
    pope_says_yes,
    yes_no_scores,
)

__all__ = [
    "BENCHMARKS",
    "Box",
    "Merged",
    "PairScores",
    "Question",
    "YesNoScores",
    "anls",
    "box_match",
    "chosen_letter",
    "edit_distance",
    "exact_match",
    "merge_predictions",
    "mme_says",
    "normalised_answer",
    "overlap",
    "pair_scores",
    "pope_says_yes",
    "read_box",
    "read_questions",
    "relaxed_match",
    "score",
    "vqa_accuracy",
    "yes_no_scores",
]
