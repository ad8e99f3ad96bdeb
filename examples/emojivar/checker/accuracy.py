"""How often the checker is right on true scenes that training never showed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.emojivar.atlas import Atlas
from examples.emojivar.prompt_sets import held_out_prompts
from examples.emojivar.prompts import Background, Prompt
from examples.emojivar.scenes import Scenes, make_scenes, render
from examples.emojivar.vocabulary import BACKGROUND_COLOURS, COLOURABLE, STYLES

from .checker import SIDE, Checker
from .decode import Detection, Reading
from .degrade import degrade
from .scoring import PromptScore, score_detections
from .targets import OPAQUE, Labels, backgrounds_of, coverage, label, sprite_names

SEED = 987_654_321  # far from those of training's steps
SCENES = 1800
AT_ONCE = 48  # pictures
PLACE_TOLERANCE = 8.0  # pixels between a detection's centre and the object's: a 32nd of the picture's side
MATCH_DISTANCE = 32.0  # pixels, beyond which a detection is of something else; half of the least distance
ANSWERS = ("kind", "place", "hue", "background", "count", "whole scene", "mask IoU")


@dataclass
class Marks:
    """What was right in one scene; lists have one entry per object that is asked about."""

    prompt: Prompt
    answers: dict[str, list[float]]
    score: PromptScore  # by GenEval's rules

    @property
    def style(self) -> str:
        """Of the background."""
        return self.prompt.background.style if self.prompt.background else ""


def measure(
    checker: Checker, atlas: Atlas, scenes: int = SCENES, seed: int = SEED, damaged: bool = False
) -> list[Marks]:
    """Mark the checker's readings of held-out scenes, painted and read on the checker's device.

    Args:
        checker: is asked.
        atlas: of the sprites.
        scenes: how many; the six tasks in turn.
        seed: of prompts and layouts.
        damaged: whether the pictures go through :func:`degrade` first.
    """
    prompts = held_out_prompts(scenes, seed)
    labels, sprites = label(atlas).to(checker.device), atlas.sprites.to(checker.device).float() / 255
    generator = torch.Generator(checker.device).manual_seed(seed)
    marks = []
    for start in range(0, scenes, AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        layout = make_scenes(part, atlas, seed + start).to(checker.device)
        images = render(layout, sprites, SIDE)
        if damaged:
            images = degrade(images, generator)
        marks += mark(part, layout, labels, checker.detect(images), checker.foreground(images))
    return marks


def mark(
    prompts: Sequence[Prompt], scenes: Scenes, labels: Labels, readings: Sequence[Reading], masks: Tensor
) -> list[Marks]:
    """Compare readings and masks ``[B, S, S]`` bool of pictures with their scenes."""
    true_masks = coverage(scenes, labels, masks.shape[-1])[:, 0] > OPAQUE
    shared, either = (masks & true_masks).sum((1, 2)), (masks | true_masks).sum((1, 2))
    ious = (shared / either.clamp(min=1)).tolist()
    backgrounds = _true_backgrounds(scenes)
    marks = []
    for index, (prompt, reading) in enumerate(zip(prompts, readings, strict=True)):
        rows = scenes.sprites[index, scenes.present[index]].tolist()
        centres = scenes.centres[index, scenes.present[index]].tolist()
        answers = mark_objects(sprite_names(labels, rows), centres, reading.detections)
        answers["background"] = [float(reading.background == backgrounds[index])]
        answers["count"] = [float(len(reading.detections) == len(rows))]
        # a scene is right where all of these are
        answers["whole scene"] = [min(value for values in answers.values() for value in values)]
        answers["mask IoU"] = [ious[index]]
        marks.append(Marks(prompt, answers, score_detections(prompt, reading.detections)))
    return marks


def mark_objects(
    names: Sequence[tuple[str, str | None]],
    centres: Sequence[Sequence[float]],
    detections: Sequence[Detection],
) -> dict[str, list[float]]:
    """1 or 0 per true object for its kind and place, and for its hue where its kind has hues.

    Each object is matched with one detection, the closest pairs first.
    """
    places = [((d.box[0] + d.box[2]) / 2, (d.box[1] + d.box[3]) / 2) for d in detections]
    pairs = sorted(
        (((x - centre[0]) ** 2 + (y - centre[1]) ** 2) ** 0.5, true, found)
        for true, centre in enumerate(centres)
        for found, (x, y) in enumerate(places)
    )
    matched: dict[int, tuple[float, Detection]] = {}
    taken: set[int] = set()
    for distance, true, found in pairs:
        if distance <= MATCH_DISTANCE and true not in matched and found not in taken:
            matched[true] = distance, detections[found]
            taken.add(found)
    answers: dict[str, list[float]] = {"kind": [], "place": [], "hue": []}
    for true, (kind, hue) in enumerate(names):
        match = matched.get(true)
        answers["kind"].append(float(match is not None and match[1].kind == kind))
        answers["place"].append(float(match is not None and match[0] <= PLACE_TOLERANCE))
        if kind in COLOURABLE:
            answers["hue"].append(float(match is not None and match[1].hue == hue))
    return answers


def _true_backgrounds(scenes: Scenes) -> list[Background]:
    names = list(BACKGROUND_COLOURS)
    styles, colours = (values.tolist() for values in backgrounds_of(scenes))
    return [
        Background(STYLES[style], tuple(name for name, there in zip(names, row, strict=True) if there))
        for style, row in zip(styles, colours, strict=True)
    ]
