"""Scores of answers as their benchmarks define them, and experts' answers merged."""

from dfm_jax.scoring.answers import (
    anls,
    chosen_letter,
    edit_distance,
    exact_match,
    normalised_answer,
    relaxed_match,
    textvqa_accuracy,
    textvqa_answer,
    vqa_accuracy,
)
from dfm_jax.scoring.benchmarks import BENCHMARKS, score
from dfm_jax.scoring.boxes import SCALES, Box, Scale, box_match, overlap, read_box
from dfm_jax.scoring.predictions import Merged, merge_predictions, read_questions
from dfm_jax.scoring.truths import Question, check_truth
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
    "SCALES",
    "Box",
    "Merged",
    "PairScores",
    "Question",
    "Scale",
    "YesNoScores",
    "anls",
    "box_match",
    "check_truth",
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
    "textvqa_accuracy",
    "textvqa_answer",
    "vqa_accuracy",
    "yes_no_scores",
]
