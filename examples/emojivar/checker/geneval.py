"""GenEval's rules: whether the objects found in a picture are those that its prompt asks for.

Ghosh, Hajishirzi and Schmidt, "GenEval: An Object-Focused Framework for Evaluating Text-to-Image
Alignment", 2023. The rules are those of its reference code, `evaluation/evaluate_images.py`, with its default
options:

- An object counts above a confidence of 0.3, in counting prompts of 0.9; at most 16 of a kind are kept, the
  most certain ones; objects of a kind that overlap are not thinned out (its ``max_overlap`` is 1).
- A prompt is a list of clauses. All of ``include`` must hold: so many objects of a kind, of which the most
  certain ones must have the colour, and the position relative to those of an earlier clause. None of
  ``exclude`` may hold: so many objects of a kind. Nothing else is asked: other objects do not matter.
- A stands left of B if the centre of its box, after forgiving a tenth of both widths, is to the left by
  more than half of the distance between the centres; likewise for right, above and below.

Adapted where the world differs:

- Objects and confidences come from this folder's detector instead of Mask2Former, and a colour from its hue
  head instead of CLIP. It tells a thing's own colours from the five hues: own colours are no hue.
- Where a position was expected, the reason lists the relations found in the order of `RELATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from examples.emojivar.vocabulary import HUES

from .decode import Detection

RELATIONS = ("left of", "right of", "above", "below")
LEAST_SHIFT = 1e-3  # pixels, below which an object stands nowhere in particular
OWN_COLOURS = "own colours"

Objects = Mapping[str, Sequence[Detection]]  # by kind, the most certain first


@dataclass(frozen=True)
class Thresholds:
    """The options of GenEval's reference code, with their defaults."""

    score: float = 0.3
    counting_score: float = 0.9
    objects: int = 16  # most of a kind
    overlap: float = 1.0  # intersection over union from which the less certain object goes; 1: it never does
    position: float = 0.1  # share of both sizes that a shift must exceed


@dataclass(frozen=True)
class Clause:
    """So many objects of a kind, with a colour, and in a relation to the objects of an earlier clause."""

    kind: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None  # a relation, and the index of the clause that it refers to


@dataclass(frozen=True)
class Request:
    """What a prompt asks for."""

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()
    counting: bool = False  # whether the stricter threshold applies


@dataclass
class Finding:
    """Whether a request is met, and every reason why not."""

    correct: bool = True
    reasons: list[str] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Note a reason."""
        self.correct = False
        self.reasons.append(reason)


def keep(
    detections: Sequence[Detection], counting: bool, thresholds: Thresholds
) -> dict[str, list[Detection]]:
    """The detections that count, by kind, the most certain first; kinds without any are left out."""
    least = thresholds.counting_score if counting else thresholds.score
    kept: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda found: -found.score):
        if detection.score > least:
            kept.setdefault(detection.kind, []).append(detection)
    return {kind: _thin(found[: thresholds.objects], thresholds.overlap) for kind, found in kept.items()}


def _thin(detections: list[Detection], most: float) -> list[Detection]:
    """Without those that overlap a more certain one by ``most`` or more; all of them if that is 1."""
    kept: list[Detection] = []
    for detection in detections:
        if most == 1 or all(intersection_over_union(other.box, detection.box) < most for other in kept):
            kept.append(detection)
    return kept


def intersection_over_union(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two boxes whose edges are pixels that belong to them, as in the reference code."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0.0) * max(bottom - top + 1, 0.0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union else 0.0


def relative_position(a: Detection, b: Detection, threshold: float) -> list[str]:
    """Where A stands relative to B: none, one or two of :data:`RELATIONS`."""
    offset, revised = [], []
    for low, high in ((0, 2), (1, 3)):
        shift = (a.box[low] + a.box[high] - b.box[low] - b.box[high]) / 2
        sizes = abs(a.box[high] - a.box[low]) + abs(b.box[high] - b.box[low])
        offset.append(shift)
        revised.append(math.copysign(max(abs(shift) - threshold * sizes, 0.0), shift))
    if all(abs(shift) < LEAST_SHIFT for shift in revised):
        return []
    x, y = (shift / math.hypot(*offset) for shift in revised)
    holds = (x < -0.5, x > 0.5, y < -0.5, y > 0.5)
    return [relation for relation, true in zip(RELATIONS, holds, strict=True) if true]


def evaluate(objects: Objects, request: Request, thresholds: Thresholds) -> Finding:
    """Judge the objects of a picture, of :func:`keep`."""
    finding = Finding()
    groups: list[Sequence[Detection] | None] = []  # of each clause, what meets it
    for clause in request.include:
        found = objects.get(clause.kind, ())[: clause.count]
        met = _judge(clause, found, groups, thresholds.position, finding)
        groups.append(found if met else None)
    for clause in request.exclude:
        count = len(objects.get(clause.kind, ()))
        if count >= clause.count:
            finding.fail(f"expected {clause.kind}<{clause.count}, found {count}")
    return finding


def _judge(
    clause: Clause,
    found: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    threshold: float,
    finding: Finding,
) -> bool:
    """Whether the objects found meet a clause; notes in ``finding`` why not."""
    if len(found) < clause.count:
        finding.fail(f"expected {clause.kind}>={clause.count}, found {len(found)}")
        return False
    if clause.colour is not None:
        hues = [detection.hue or OWN_COLOURS for detection in found]
        matching = hues.count(clause.colour)
        if matching < clause.count:
            seen = ", ".join(f"{hues.count(hue)} {hue}" for hue in (*HUES, OWN_COLOURS) if hue in hues)
            finding.fail(
                f"expected {clause.colour} {clause.kind}>={clause.count}, "
                f"found {matching} {clause.colour}; and {seen}"
            )
            return False
    if clause.position is not None:
        expected, index = clause.position
        targets = groups[index]
        if targets is None:
            finding.fail(f"no target for {clause.kind} to be {expected}")
            return False
        for detection in found:
            for target in targets:
                relations = relative_position(detection, target, threshold)
                if expected not in relations:
                    finding.fail(
                        f"expected {clause.kind} {expected} target, found {' and '.join(relations)} target"
                    )
                    return False
    return True
