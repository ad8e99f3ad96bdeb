"""The decision models of SkipVAR: what they are made of, and the JSON file that holds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toprovar_compiler.errors import ArtifactError
from toprovar_compiler.policies.artifacts import fingerprint, numbers, read_artifact

SCHEMA = 1
KIND = "skipvar-decisions"
FEATURES = ("high_frequency_difference", "high_frequency_ratio")
MOST_SCALES = 3
"""Labels are 0 to this many of the last scales."""
_SHIPPED = Path(__file__).parent / "decisions"
_REMEDY = "fit one with: python -m toprovar_compiler.policies.skipvar_fit --model module:function --out FILE"


@dataclass(frozen=True)
class Regression:
    """Softmax regression on standardised features; its classes are 0 to ``MOST_SCALES`` last scales.

    Attributes:
        centre, spread: of each feature.
        weights: one row of feature weights per class.
        bias: one number per class.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    def predict(self, features: Tensor) -> list[int]:
        """Features [samples, 2] -> the likeliest class of each sample."""
        x = (features.double().cpu() - torch.tensor(self.centre)) / torch.tensor(self.spread)
        logits = x @ torch.tensor(self.weights, dtype=torch.float64).t() + torch.tensor(self.bias)
        classes: list[int] = logits.argmax(1).tolist()
        return classes


@dataclass(frozen=True)
class Decisions:
    """Everything that a decision needs.

    Attributes:
        model: the model's class, for readers.
        fingerprint: of the model that this was fitted for.
        decision_scale: the scale after whose codes the decision is taken.
        scale_weights: of each scale's codes in the sum that is judged.
        threshold: SSIM to the dense picture that was asked of a label.
        samples: how many pictures were fitted to.
        skip: how many of the last scales are not run.
        replace: in how many of the last scales the unconditional branch is replaced, where none is skipped.
    """

    model: str
    fingerprint: str
    decision_scale: int
    scale_weights: tuple[float, ...]
    threshold: float
    samples: int
    skip: Regression
    replace: Regression

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        content = {"schema": SCHEMA, "kind": KIND, "features": list(FEATURES), **asdict(self)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def decisions_for(model: nn.Module, schedule: tuple[int, ...], path: str | None) -> Decisions:
    """The decision models in the file at ``path``, or else those that come with this package for the model,
    which has this schedule of tokens per scale.

    Raises:
        ArtifactError: no such file, damaged, of another kind or schema, or fitted for another model.
    """
    wanted = fingerprint(model)
    paths = sorted(_SHIPPED.glob("*.json")) if path is None else [Path(path)]
    for found in map(load_decisions, paths):
        if found.fingerprint == wanted and len(found.scale_weights) == len(schedule):
            return found
        if path is not None:
            raise ArtifactError(
                f"decisions={path!r} requires the model that it was fitted for ({found.model}, "
                f"{found.fingerprint[:12]}), got {type(model).__name__} ({wanted[:12]}); {_REMEDY}"
            )
    raise ArtifactError(
        f"policy='skipvar' requires a decision model for {type(model).__name__}, got none: decisions is None "
        f"and none comes with toprovar; {_REMEDY}, and pass decisions=FILE"
    )


def load_decisions(path: Path) -> Decisions:
    """Read and check a JSON file.

    Raises:
        ArtifactError: no such file, damaged, or of another kind or schema.
    """
    return read_artifact(path, KIND, SCHEMA, "decision model", _REMEDY, _decisions)


def _decisions(content: dict[str, Any]) -> Decisions:
    if content["features"] != list(FEATURES):
        raise ValueError(f"features {content['features']}")
    weights = numbers(content["scale_weights"])
    scale = int(content["decision_scale"])
    if not 1 <= scale < len(weights) - 1:
        raise ValueError(f"decision_scale {scale} of {len(weights)} scales")
    return Decisions(
        model=str(content["model"]),
        fingerprint=str(content["fingerprint"]),
        decision_scale=scale,
        scale_weights=weights,
        threshold=numbers([content["threshold"]])[0],
        samples=int(content["samples"]),
        skip=_regression(content["skip"]),
        replace=_regression(content["replace"]),
    )


def _regression(content: dict[str, Any]) -> Regression:
    made = Regression(
        centre=numbers(content["centre"], len(FEATURES)),
        spread=numbers(content["spread"], len(FEATURES)),
        weights=_rows(content["weights"], lambda row: numbers(row, len(FEATURES))),
        bias=numbers(content["bias"], MOST_SCALES + 1),
    )
    if min(made.spread) <= 0:
        raise ValueError(f"spread {made.spread}")
    return made


def _rows(items: Sequence[Any], read: Callable[[Any], tuple[float, ...]]) -> tuple[tuple[float, ...], ...]:
    if len(items) != MOST_SCALES + 1:
        raise ValueError(f"{len(items)} classes")
    return tuple(read(item) for item in items)
