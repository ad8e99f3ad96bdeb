"""Prompts to clauses, and the composition score: every task's true scenes are right, wrong ones are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor

from examples.emojivar import PromptError, parse
from examples.emojivar.atlas import Atlas
from examples.emojivar.checker import Checker, Detection, PromptScore, Reading, composition, score_pictures
from examples.emojivar.checker.geneval import Clause, Request
from examples.emojivar.checker.scoring import request_of, score_detections
from examples.emojivar.checker.targets import boxes_of, label, sprite_names
from examples.emojivar.prompt_sets import held_out_prompts
from examples.emojivar.prompts import TASKS, Background, Prompt
from examples.emojivar.scenes import make_scenes

PLAIN = Background("plain", ("teal",))


def true_detections(prompts: Sequence[Prompt], atlas: Atlas, seed: int) -> list[list[Detection]]:
    """What a perfect detector sees in the scenes of prompts."""
    labels, scenes = label(atlas), make_scenes(prompts, atlas, seed)
    boxes = boxes_of(scenes, labels)
    pictures = []
    for index, present in enumerate(scenes.present):
        names = sprite_names(labels, scenes.sprites[index, present].tolist())
        half = boxes.sizes[index, present] / 2
        edges = torch.cat([boxes.centres[index, present] - half, boxes.centres[index, present] + half], 1)
        pictures.append(
            [Detection(*name, tuple(box), 0.99) for name, box in zip(names, edges.tolist(), strict=True)]
        )
    return pictures


@pytest.mark.parametrize(
    ("prompt", "request_"),
    [
        ("a cat", Request((Clause("cat"),))),
        ("a cat and a dog", Request((Clause("cat"), Clause("dog")))),
        ("three cats", Request((Clause("cat", 3),), (Clause("cat", 4),), counting=True)),
        ("a red mug", Request((Clause("mug", colour="red"),))),
        ("a red mug and a blue hat", Request((Clause("mug", colour="red"), Clause("hat", colour="blue")))),
        ("a cat above a dog", Request((Clause("dog"), Clause("cat", position=("above", 0))))),
        ("a cat left of a dog", Request((Clause("dog"), Clause("cat", position=("left of", 0))))),
    ],
)
def test_clauses_are_those_that_geneval_writes(prompt: str, request_: Request) -> None:
    assert request_of(parse(prompt)) == request_
    assert request_of(parse(f"{prompt} on a plain navy background")) == request_


@pytest.mark.parametrize("task", TASKS)
def test_true_scenes_of_every_task_are_right(atlas: Atlas, task: str) -> None:
    prompts = held_out_prompts(60, seed=3, task=task)
    pictures = true_detections(prompts, atlas, seed=3)
    scores = [score_detections(p, found) for p, found in zip(prompts, pictures, strict=True)]
    assert {score.task for score in scores} == {task}
    assert [score for score in scores if not score.correct] == []
    assert {score.reason for score in scores} == {""}


@pytest.mark.parametrize("task", TASKS)
def test_scenes_of_other_prompts_are_wrong(atlas: Atlas, task: str) -> None:
    prompts = held_out_prompts(60, seed=3, task=task)
    pictures = true_detections(prompts, atlas, seed=3)
    others = [
        score_detections(asked, found)
        for asked, shown, found in zip(prompts, prompts[1:], pictures[1:], strict=False)
        if request_of(asked) != request_of(shown)
    ]
    assert len(others) >= 30
    assert not any(score.correct for score in others)
    assert all(score.reason for score in others)


class StandIn(Checker):
    """Sees the same in every picture."""

    def __init__(self, *detections: Detection) -> None:
        self.detections = list(detections)

    def detect(self, images: Tensor, least_score: float = 0.3) -> list[Reading]:
        return [Reading(self.detections, PLAIN) for _ in images]


def test_pictures_are_scored_in_order() -> None:
    cat, dog = (Detection(kind, None, (x, 0, x + 50, 50), 0.95) for kind, x in (("cat", 0), ("dog", 90)))
    checker = StandIn(cat, dog)
    prompts = ["a cat", "a cat left of a dog", parse("a cat right of a dog"), "two cats", "a pig"]
    scores = score_pictures(prompts, torch.zeros(5, 3, 256, 256), checker)
    assert [score.correct for score in scores] == [True, True, False, False, False]
    assert [score.task for score in scores] == ["single", "position", "position", "count", "single"]
    assert scores[3].reason == "expected cat>=2, found 1"


def test_no_pictures() -> None:
    assert score_pictures([], torch.zeros(0, 3, 256, 256), StandIn()) == []


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="got 2 for 1 prompts"):
        score_pictures(["a cat"], torch.zeros(2, 3, 256, 256), StandIn())
    with pytest.raises(PromptError, match="wug"):
        score_pictures(["a wug"], torch.zeros(1, 3, 256, 256), StandIn())


def test_overall_is_the_mean_of_the_tasks() -> None:
    scores = [PromptScore("single", True, "")] * 3 + [PromptScore("count", False, "expected")]
    assert composition(scores) == {"overall": 0.5, "per_task": {"single": 1.0, "count": 0.0}}
    assert list(composition(scores[::-1])["per_task"]) == ["single", "count"]
    with pytest.raises(ValueError, match="at least one score"):
        composition(cast("list[PromptScore]", []))
