"""The accuracy table that the checker's weights come with, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.emojivar.atlas import Atlas
from examples.emojivar.vocabulary import STYLES

from .accuracy import ANSWERS, PLACE_TOLERANCE, SCENES, SEED, Marks, measure
from .checker import Checker
from .scoring import composition

JSON_NAME = "checker.accuracy.json"
MARKDOWN_NAME = "checker.accuracy.md"
EXPLANATION = f"""\
Percent right on true scenes of held-out prompts, the six tasks in turn (seed {SEED}). Of objects: *kind*;
*place*, the centre within {PLACE_TOLERANCE:g} pixels; *hue*, where the kind exists in several. Of scenes:
*background*, its style and colours; *count*, as many objects found as there are; *whole scene*, all of these.
*mask IoU* is the mean intersection over union of the pixels that belong to sprites.
"""


def table_of(marks: Sequence[Marks]) -> dict[str, dict[str, float]]:
    """Mean of each answer, over all scenes, per number of objects and per style of background."""
    groups = {"all": list(marks)}
    for count in sorted({each.prompt.objects for each in marks}):
        of_count = [each for each in marks if each.prompt.objects == count]
        groups[f"{count} object{'s' * (count > 1)}"] = of_count
    for style in STYLES:
        groups[f"{style} background"] = [each for each in marks if each.style == style]
    return {name: _row(group) for name, group in groups.items()}


def _row(marks: Sequence[Marks]) -> dict[str, float]:
    """Means of the answers that anything in a group was asked for."""
    row: dict[str, float] = {"scenes": len(marks)}
    for answer in ANSWERS:
        values = [value for each in marks for value in each.answers[answer]]
        if values:
            row[answer] = sum(values) / len(values)
    return row


def make_report(checker: Checker, atlas: Atlas, scenes: int = SCENES) -> dict[str, Any]:
    """Measure a checker; JSON values, shares in [0, 1]."""
    clean = measure(checker, atlas, scenes)
    damaged = measure(checker, atlas, scenes, damaged=True)
    return {
        "weights": checker.fingerprint,
        "seed": SEED,
        "place_tolerance_pixels": PLACE_TOLERANCE,
        "true_scenes": table_of(clean),
        "damaged_scenes": table_of(damaged),
        "composition_of_true_scenes": composition([each.score for each in clean]),
    }


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write `checker.accuracy.json` and `checker.accuracy.md`."""
    (folder / JSON_NAME).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / MARKDOWN_NAME).write_text(_markdown(report), encoding="utf-8")


def _markdown(report: dict[str, Any]) -> str:
    scores = report["composition_of_true_scenes"]
    tasks = ", ".join(f"{task} {share:.2%}" for task, share in scores["per_task"].items())
    return "\n".join(
        [
            "# Accuracy of the checker",
            "",
            EXPLANATION,
            *_markdown_table("true scenes", report["true_scenes"]),
            "",
            "The same scenes with slight blur, noise, blocks and shifted colours (`degrade.py`):",
            "",
            *_markdown_table("damaged scenes", report["damaged_scenes"]),
            "",
            f"Composition score of the true scenes: {scores['overall']:.2%} ({tasks}).",
            "",
            f"Weights: SHA-256 {report['weights']}.",
            "",
        ]
    )


def _markdown_table(title: str, table: dict[str, dict[str, float]]) -> list[str]:
    lines = [f"| {title} | scenes | {' | '.join(ANSWERS)} |", "|---" + "|---:" * (1 + len(ANSWERS)) + "|"]
    for name, row in table.items():
        shares = [f"{100 * row[answer]:.2f}" if answer in row else "" for answer in ANSWERS]
        lines.append(f"| {name} | {row['scenes']} | {' | '.join(shares)} |")
    return lines
