"""From the network's maps to objects with boxes, and a background."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from examples.emojivar.prompts import GRADIENT, Background
from examples.emojivar.vocabulary import BACKGROUND_COLOURS, HUES, KINDS, STYLES

from .net import STRIDE, Maps

LEAST_SCORE = 0.3  # GenEval's threshold, the lowest that anything here uses
NEIGHBOURHOOD = 5  # cells a side in which an object is reported once; true centres are seven apart or more
MOST_OBJECTS = 32  # in a picture
MOST_OVERLAP = 0.5  # intersection over union of two objects' boxes


class Detection(NamedTuple):
    """One object of a picture."""

    kind: str
    hue: str | None  # None for the thing's own colours
    box: tuple[float, float, float, float]  # left, top, right, bottom, in pixels
    score: float  # probability that an object of this kind is there


class Reading(NamedTuple):
    """What the detector sees in one picture."""

    detections: list[Detection]  # the most certain first
    background: Background


def decode(maps: Maps, least_score: float = LEAST_SCORE) -> list[Reading]:
    """One reading per picture of a batch.

    Args:
        maps: of the network, float32.
        least_score: objects below it are left out.
    """
    logits = maps.objectness[:, 0]
    highest = F.max_pool2d(logits, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2) == logits
    sure, kinds = maps.kinds.softmax(1).max(1)
    scores = (logits.sigmoid() * sure * highest).cpu()
    kinds, hues = kinds.cpu(), maps.hues.argmax(1).cpu()
    boxes = _boxes(maps).cpu()
    backgrounds = _backgrounds(maps)
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :MOST_OBJECTS].tolist()
    readings = []
    for picture, background in enumerate(backgrounds):
        found: list[Detection] = []
        for cell in order[picture]:
            row, column = divmod(cell, logits.shape[-1])
            detection = Detection(
                kind=KINDS[int(kinds[picture, row, column])],
                hue=(None, *HUES)[int(hues[picture, row, column])],
                box=tuple(boxes[picture, :, row, column].tolist()),
                score=float(scores[picture, row, column]),
            )
            if detection.score <= least_score:
                break
            if all(overlap(detection.box, other.box) < MOST_OVERLAP for other in found):
                found.append(detection)
        readings.append(Reading(found, background))
    return readings


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def _boxes(maps: Maps) -> Tensor:
    """Left, top, right and bottom ``[B, 4, G, G]`` in pixels."""
    side = maps.offsets.shape[-1]
    middle = torch.arange(side, device=maps.offsets.device) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    centres = torch.stack([x, y]) + maps.offsets
    half = maps.sizes.exp() / 2
    return torch.cat([centres - half, centres + half], 1) * STRIDE


def _backgrounds(maps: Maps) -> list[Background]:
    names = list(BACKGROUND_COLOURS)
    styles = maps.styles.argmax(1).tolist()
    ranked = maps.colours.argsort(dim=1, descending=True).tolist()
    found = []
    for style, order in zip(styles, ranked, strict=True):
        count = 2 if STYLES[style] == GRADIENT else 1
        # the two colours of a gradient have no order in a picture
        found.append(Background(STYLES[style], tuple(names[index] for index in sorted(order[:count]))))
    return found
