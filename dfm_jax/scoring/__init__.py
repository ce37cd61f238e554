"""Scores of answers as their benchmarks define them, and experts' answers merged."""

from dfm_jax.scoring.answers import (
    PairScores,
    YesNoScores,
    anls,
    chosen_letter,
    edit_distance,
    exact_match,
    mme_says,
    normalised_answer,
    pair_scores,
    pope_says_yes,
    relaxed_match,
    textvqa_accuracy,
    textvqa_answer,
    vqa_accuracy,
    yes_no_scores,
)
from dfm_jax.scoring.benchmarks import BENCHMARKS, score
from dfm_jax.scoring.boxes import SCALES, Box, Scale, overlap, read_box
from dfm_jax.scoring.predictions import Merged, merge_predictions, read_questions
from dfm_jax.scoring.truths import Question, check_truth

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
