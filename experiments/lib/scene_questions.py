"""Questions about scenes of emoji, with answers that are known: six families.

what      what is at the top left?          red apple
where     where is the red apple?           top left
count     how many are there?               3
present   is there a red apple?             yes
group     which group are they of?          food
left      what is left of the red apple?    green apple
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.checks import check_count, require
from experiments.lib.emoji import Scene

FAMILIES = ("what", "where", "count", "present", "group", "left")
PLACES = ("top left", "top right", "bottom left", "bottom right")  # by cell


class SceneQuestion(NamedTuple):
    """A question about one scene."""

    family: str
    question: str
    answer: str


def scene_questions(
    scene: Scene, names: Sequence[str], *, index: int, seed: int = 0
) -> tuple[SceneQuestion, ...]:
    """One question of every family that the scene allows, in the order of `FAMILIES`.

    A function of (scene, names, index, seed). Which emoji is asked for is drawn; `where` and `left`
    ask for one that stands there once, `left` for one with another in the cell on its left.
    `present` is a yes or a no with equal chance; a no asks for one of `names` that is not there.

    Args:
        scene: The scene that is shown.
        names: The names from which questions with the answer no choose; one must not be in the
            scene.
        index: The number of the scene.
        seed: The seed of the questions.

    Raises:
        ValueError: if all of `names` are in the scene, or a number is negative.
    """
    check_count("index", index, at_least=0)
    check_count("seed", seed, at_least=0)
    there = {placed.name for placed in scene.emoji}
    others = [name for name in names if name not in there]
    rule = "`names` must hold a name that is not in the scene"
    require(len(others) > 0, rule, list(names))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    return tuple(_questions(scene, others, rng))


def _questions(
    scene: Scene, others: Sequence[str], rng: np.random.Generator
) -> Iterator[SceneQuestion]:
    by_cell = {placed.cell: placed.name for placed in scene.emoji}
    often = Counter(by_cell.values())
    once = {cell: name for cell, name in by_cell.items() if often[name] == 1}
    cell = _one_of(rng, sorted(by_cell))
    yield SceneQuestion("what", f"what is at the {PLACES[cell]}?", by_cell[cell])
    if once:
        cell = _one_of(rng, sorted(once))
        yield SceneQuestion("where", f"where is the {once[cell]}?", PLACES[cell])
    yield SceneQuestion("count", "how many are there?", str(len(by_cell)))
    yes = bool(rng.integers(2))
    name = _one_of(rng, list(by_cell.values()) if yes else others)
    yield SceneQuestion("present", f"is there a {name}?", "yes" if yes else "no")
    yield SceneQuestion("group", "which group are they of?", scene.group)
    right = [cell for cell in sorted(once) if cell % 2 == 1 and cell - 1 in by_cell]
    if right:
        cell = _one_of(rng, right)
        yield SceneQuestion("left", f"what is left of the {once[cell]}?", by_cell[cell - 1])


def question_rows(
    questions: Sequence[SceneQuestion], image: str, *, name: str
) -> list[dict[str, Any]]:
    """The questions of one image as rows of conversations, `family` besides."""
    return [
        {
            "id": f"{name}-{asked.family}",
            "image": image,
            "family": asked.family,
            "conversations": [
                {"from": "human", "value": f"<image>\n{asked.question}"},
                {"from": "gpt", "value": asked.answer},
            ],
        }
        for asked in questions
    ]


def _one_of(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]
