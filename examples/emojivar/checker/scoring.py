"""The composition score: how many pictures show what their prompts say, by GenEval's rules and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from torch import Tensor

from examples.emojivar.prompts import TASKS, Prompt, parse

from .checker import Checker
from .decode import Detection
from .geneval import RELATIONS, Clause, Request, Thresholds, evaluate, keep

# GenEval's names: single_object, two_object, counting, colors, position, color_attr
RELATION_NAMES = dict(zip(("left", "right", "above", "below"), RELATIONS, strict=True))


class PromptScore(NamedTuple):
    """Whether a picture shows what its prompt says."""

    task: str  # one of `TASKS`
    correct: bool
    reason: str  # what is wrong, a line each; empty where nothing is


class Composition(TypedDict):
    """Shares of correct pictures in [0, 1]; ``overall`` is the mean over the tasks that occur."""

    overall: float
    per_task: dict[str, float]


def request_of(prompt: Prompt) -> Request:
    """The clauses that GenEval would give a prompt. It never asks for the background."""
    kinds = prompt.kinds
    if prompt.task == "count":
        return Request(
            include=(Clause(kinds[0], prompt.count),),
            exclude=(Clause(kinds[0], prompt.count + 1),),
            counting=True,
        )
    if prompt.relation:
        first, second = kinds
        placed = Clause(first, position=(RELATION_NAMES[prompt.relation], 0))
        return Request(include=(Clause(second), placed))
    hues = prompt.hues or (None,) * len(kinds)
    return Request(include=tuple(Clause(kind, colour=hue) for kind, hue in zip(kinds, hues, strict=True)))


def score_detections(
    prompt: Prompt, detections: Sequence[Detection], thresholds: Thresholds | None = None
) -> PromptScore:
    """Judge what was detected in the picture of a prompt."""
    thresholds = thresholds or Thresholds()
    request = request_of(prompt)
    finding = evaluate(keep(detections, request.counting, thresholds), request, thresholds)
    return PromptScore(prompt.task, finding.correct, "\n".join(finding.reasons))


def score_pictures(prompts: Sequence[str | Prompt], images: Tensor, checker: Checker) -> list[PromptScore]:
    """Judge pictures ``[B, 3, 256, 256]`` in [0, 1], one per prompt.

    Raises:
        PromptError: a prompt is outside the grammar.
        ValueError: not as many pictures as prompts, or of another shape.
    """
    if len(prompts) != len(images):
        raise ValueError(
            f"score_pictures requires one picture per prompt, got {len(images)} for {len(prompts)} prompts; "
            "pass them in the same order"
        )
    parsed = [prompt if isinstance(prompt, Prompt) else parse(prompt) for prompt in prompts]
    readings = checker.detect(images)
    return [score_detections(p, reading.detections) for p, reading in zip(parsed, readings, strict=True)]


def composition(scores: Sequence[PromptScore]) -> Composition:
    """The share of correct pictures per task, and the mean of these shares (not of the pictures).

    Raises:
        ValueError: no scores at all.
    """
    if not scores:
        raise ValueError("composition requires at least one score, got none; score some pictures first")
    per_task = {}
    for task in TASKS:
        of_task = [score.correct for score in scores if score.task == task]
        if of_task:
            per_task[task] = sum(of_task) / len(of_task)
    return {"overall": sum(per_task.values()) / len(per_task), "per_task": per_task}
