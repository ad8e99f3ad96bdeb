"""A calibration: what was learned of a model's attention entropy from dense pictures, and its JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from toprovar_compiler.errors import ArtifactError, OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.artifacts import fingerprint, numbers, read_artifact, same_sketch, sketch

SCHEMA = 1
KIND = "toprovar-calibration"
_SHIPPED = Path(__file__).parent / "calibrations"
_SSIM_ROUNDING = 1e-6  # of means of float32
_REMEDY = "make one with: toprovar calibrate module:function --prompts N --out FILE"

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Gate:
    """How the entropies of one scale predict where the next one matters.

    The importance of a token is ``bias + sum_lh weights[l][h] (H_lh / log Nk - centre[l][h])``, with H_lh its
    entropy (eq. 2) in layer l and head h, and Nk the number of keys. It is a prediction of the strength of
    the dense picture's edges under the token, z-scored over each picture.

    Attributes:
        weights, centre: one row per layer, one number per head.
        explained: R^2 of the prediction over the tokens of the calibration's pictures.
    """

    weights: Rows
    centre: Rows
    bias: float
    explained: float


@dataclass(frozen=True)
class Plan:
    """How many tokens each scale keeps.

    Attributes:
        times_fewer: FLOPs of the dense transformer over those of the pruned one.
        ssim: to the dense picture, expected from pruning each scale alone.
        keep_ratio: of each scale.
        guidance_until: the first scale without guidance; None where it goes on to the end.
    """

    times_fewer: float
    ssim: float
    keep_ratio: tuple[float, ...]
    guidance_until: int | None = None

    @property
    def pruned_scales(self) -> list[int]:
        """Scales of which not all tokens are kept."""
        return [scale for scale, ratio in enumerate(self.keep_ratio) if ratio < 1]

    @property
    def start_scale(self) -> int:
        """The first scale that is pruned; the last one where none is."""
        return min(self.pruned_scales, default=len(self.keep_ratio) - 1)


@dataclass(frozen=True)
class Calibration:
    """Everything that pruning needs to know of a model.

    Attributes:
        model: the model's class, for readers.
        fingerprint, sketch: of the model; see :mod:`toprovar_compiler.policies.artifacts`.
        schedule: tokens of each scale.
        gates: scale -> the gate that ranks the tokens of the next scale.
        plan: the budget where none is asked for.
        plans: from mild to strong.
        record: how it was made and what was measured, for readers.
    """

    model: str
    fingerprint: str
    sketch: tuple[float, ...]
    schedule: tuple[int, ...]
    gates: Mapping[int, Gate]
    plan: Plan
    plans: tuple[Plan, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        content = {"schema": SCHEMA, "kind": KIND, **dataclasses.asdict(self)}
        content["gates"] = {str(scale): dataclasses.asdict(gate) for scale, gate in self.gates.items()}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def complete(self, options: Options) -> Options:
        """``options`` with a plan's budget, and its end of guidance, where they name no budget.

        Raises:
            OptionError: ``target_speedup`` is above that of every plan.
        """
        if options.keep_ratio is not None or options.retention_range is not None:
            return options
        plan = self.plan if options.target_speedup is None else self._plan_for(options.target_speedup)
        start = plan.start_scale if options.start_scale is None else options.start_scale
        until = plan.guidance_until if options.guidance_until is None else options.guidance_until
        return dataclasses.replace(
            options,
            keep_ratio=plan.keep_ratio,
            start_scale=start,
            target_speedup=None,
            guidance_until=until,
        )

    def _plan_for(self, times_fewer: float) -> Plan:
        """The mildest plan with at least so many times fewer FLOPs."""
        plans = sorted((self.plan, *self.plans), key=lambda plan: plan.times_fewer)
        for plan in plans:
            if plan.times_fewer >= times_fewer:
                return plan
        most = math.floor(100 * plans[-1].times_fewer) / 100
        raise OptionError(
            f"target_speedup requires at most {most}, the strongest plan of the model's "
            f"calibration, got {times_fewer}; ask for less, or calibrate with --target-speedup {times_fewer}"
        )


def calibration_for(
    model: nn.Module, schedule: tuple[int, ...] | None, path: str | None
) -> Calibration | None:
    """The calibration in the file at ``path``, or else the one that comes with this package for the model, or
    None where there is none.

    Args:
        schedule: tokens per scale, as the model states them.

    Raises:
        ArtifactError: no such file, damaged, of another kind or schema, or made for another model.
    """
    wanted = fingerprint(model)
    if path is None:
        for found in map(load_calibration, sorted(_SHIPPED.glob("*.json"))):
            if found.fingerprint == wanted and same_sketch(found.sketch, sketch(model)):
                return found
        return None
    found = load_calibration(Path(path))
    if found.fingerprint != wanted or found.schedule != schedule:
        raise ArtifactError(
            f"calibration={path!r} requires the model that it was made for ({found.model}, "
            f"{found.fingerprint[:12]}), got {type(model).__name__} ({wanted[:12]}); {_REMEDY}"
        )
    if not same_sketch(found.sketch, sketch(model)):
        raise ArtifactError(
            f"calibration={path!r} requires the weights that it was made for, got a {found.model} of other "
            f"weights; {_REMEDY}"
        )
    return found


def load_calibration(path: Path) -> Calibration:
    """Read and check a JSON file.

    Raises:
        ArtifactError: no such file, damaged, or of another kind or schema.
    """
    return read_artifact(path, KIND, SCHEMA, "calibration", _REMEDY, _calibration)


def _calibration(content: dict[str, Any]) -> Calibration:
    schedule = tuple(int(tokens) for tokens in numbers(content["schedule"]))
    if min(schedule) < 1 or list(schedule) != list(content["schedule"]):
        raise ValueError(f"schedule {schedule}")
    plans = [_plan(plan, len(schedule)) for plan in (content["plan"], *content["plans"])]
    gates = {int(scale): _gate(gate) for scale, gate in content["gates"].items()}
    shapes = {(len(gate.weights), len(gate.weights[0])) for gate in gates.values()}
    if len(shapes) != 1 or not all(0 <= scale < len(schedule) - 1 for scale in gates):
        raise ValueError(f"gates of scales {sorted(gates)} with layers and heads {sorted(shapes)}")
    pruned = {scale for plan in plans for scale in plan.pruned_scales}
    if not {scale - 1 for scale in pruned} <= set(gates):
        raise ValueError(f"plans that prune the scales {sorted(pruned)}, gates of {sorted(gates)}")
    return Calibration(
        model=str(content["model"]),
        fingerprint=str(content["fingerprint"]),
        sketch=numbers(content["sketch"]),
        schedule=schedule,
        gates=gates,
        plan=plans[0],
        plans=tuple(plans[1:]),
        record=dict(content["record"]),
    )


def _plan(content: dict[str, Any], scales: int) -> Plan:
    times_fewer, ssim = numbers([content["times_fewer"], content["ssim"]])
    # Files made before guidance could end say nothing of it.
    until = content.get("guidance_until")
    made = Plan(times_fewer, ssim, numbers(content["keep_ratio"], scales), until)
    if until is not None and (type(until) is not int or not 0 < until < scales):
        raise ValueError(f"guidance_until {until!r}")
    if not all(0 < ratio <= 1 for ratio in made.keep_ratio):
        raise ValueError(f"keep_ratio {made.keep_ratio}")
    if not (made.times_fewer >= 1 and made.ssim <= 1 + _SSIM_ROUNDING):
        raise ValueError(f"times_fewer {made.times_fewer}, ssim {made.ssim}")
    return made


def _gate(content: dict[str, Any]) -> Gate:
    made = Gate(
        weights=tuple(numbers(row) for row in content["weights"]),
        centre=tuple(numbers(row) for row in content["centre"]),
        bias=numbers([content["bias"]])[0],
        explained=numbers([content["explained"]])[0],
    )
    shape = [len(row) for row in made.weights]
    if not shape or any(a != b for a, b in pairwise(shape)) or shape != [len(row) for row in made.centre]:
        raise ValueError(f"layers of {shape} weights and {[len(row) for row in made.centre]} centres")
    return made
