"""A whole calibration: paint dense, fit the gates, prune each scale alone, plan, and write the file."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from toprovar_compiler.calibration.budgets import RATIOS, FlopsModel, Planner, scales_worth_pruning
from toprovar_compiler.calibration.importance import RIDGE, importance
from toprovar_compiler.calibration.recorder import HeadRecorder
from toprovar_compiler.cli_model import load_model, paint
from toprovar_compiler.cli_progress import Progress
from toprovar_compiler.compiled_model import CompiledModel
from toprovar_compiler.environment import commit, environment
from toprovar_compiler.errors import EvaluationError, OptionError, UnsupportedModelError
from toprovar_compiler.evaluation.painter import to_bytes, to_floats
from toprovar_compiler.evaluation.picture_metrics import compare
from toprovar_compiler.evaluation.prompts import read_prompts
from toprovar_compiler.evaluation.suite import load_suite
from toprovar_compiler.options import Options
from toprovar_compiler.policies.artifacts import fingerprint, sketch
from toprovar_compiler.policies.calibration import Calibration, Gate, Plan
from toprovar_compiler.policies.gate_fit import GateFit
from toprovar_compiler.policies.scale_depth import low_entropy_ratio
from toprovar_compiler.schedule import stated_schedule

TARGET_SPEEDUP = 3.4
"""Times fewer FLOPs, the paper's on Infinity-2B: what is planned for if nothing is asked for."""
_FEWEST_TOKENS = 16  # of a scale whose entropies can say anything about places
_FEWEST_SCALES = 3
_SSIM_STEP = 0.25  # of what was missed, by which the next plan is milder
_MOST_TRIES = 6


@dataclass(frozen=True)
class Settings:
    """What to calibrate on, for what, and where to write.

    Attributes:
        model, suite: ``module:function``.
        prompts: a number, or the path of a text file.
        target_speedup: times fewer FLOPs; or
        min_ssim: the mean SSIM to the dense pictures that is asked for.
        batch: pictures at a time.
    """

    model: str
    suite: str | None
    device: str
    dtype: str | None
    prompts: str
    seed: int
    batch: int
    target_speedup: float | None
    min_ssim: float | None
    out: Path


def calibrate(settings: Settings) -> str:
    """Do it; returns what to print.

    Raises:
        ToprovarError: bad input, or a model that cannot be pruned.
        ValueError: the model or the suite refuses a prompt.
    """
    if not settings.out.absolute().parent.is_dir() or settings.out.is_dir():
        raise OptionError(f"--out requires a file in a folder that exists, got {str(settings.out)!r}")
    model = load_model(settings.model, settings.device, settings.dtype)
    suite = load_suite(settings.suite, settings.model, next(model.parameters()).device)
    prompts = read_prompts(settings.prompts, settings.seed, suite)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        found = _Calibrator(model, prompts, settings, Path(folder)).calibration()
    try:
        found.save(settings.out)
    except OSError as error:
        raise OptionError(f"--out requires a file that can be written, got {error}") from error
    return _report(found, settings.out)


class _Calibrator:
    """A model and its prompts."""

    def __init__(self, model: nn.Module, prompts: Sequence[str], settings: Settings, folder: Path) -> None:
        schedule = stated_schedule(model)
        if schedule is None or len(schedule) < _FEWEST_SCALES:
            raise UnsupportedModelError(
                f"calibration requires a model that states at least {_FEWEST_SCALES} scales, got {schedule}; "
                "set its attribute patch_nums"
            )
        if any(later <= earlier for earlier, later in pairwise(schedule)):
            raise UnsupportedModelError(
                f"calibration requires a model whose scales grow, got {schedule} tokens; toprovar prunes the "
                "fine scales of a coarse-to-fine model"
            )
        self.model, self.schedule, self.settings = model, schedule, settings
        size = settings.batch
        self.batches = [(i, prompts[i : i + size]) for i in range(0, len(prompts), size)]
        self.gates_alone = folder / "gates.json"
        self.dense: list[Tensor] = []
        """What all else is compared with, [B, 3, H, W] uint8 of each batch."""

    def calibration(self) -> Calibration:
        gates, flops, statistics = self._learn()
        dense = CompiledModel(self.model, Options(policy="dense"))
        self.dense = [to_bytes(pictures) for pictures, _ in self._painted(dense, "dense")]
        scales = scales_worth_pruning(flops, gates)
        if not scales:
            raise UnsupportedModelError(
                "calibration requires a scale with a square token grid that holds 2 % of the FLOPs, got none "
                f"in the schedule {self.schedule}; toprovar cannot prune this model"
            )
        unplanned = Calibration(
            model=type(self.model).__name__,
            fingerprint=fingerprint(self.model),
            sketch=sketch(self.model),
            schedule=self.schedule,
            gates=gates,
            plan=Plan(1.0, 1.0, (1.0,) * len(self.schedule)),
        )
        unplanned.save(self.gates_alone)
        damage = self._damage(scales)
        planner = Planner(flops, damage)
        plan, measured = self._choose(planner)
        record = {
            "command": shlex.join(["toprovar", *sys.argv[1:]]),
            "commit": commit(),
            "environment": environment(),
            "pictures": sum(len(prompts) for _, prompts in self.batches),
            "seed": self.settings.seed,
            "measured": measured,
            "scales": statistics,
            "damage": [{"scale": s, "keep_ratio": r, "ssim": 1 - harm} for (s, r), harm in damage.items()],
        }
        return dataclasses.replace(unplanned, plan=plan, plans=planner.menu(), record=record)

    def _learn(self) -> tuple[dict[int, Gate], FlopsModel, list[dict[str, float]]]:
        """The gates, what a token costs, and statistics of each scale's entropies.

        These pictures are not the ones to compare with: in low precision, blocks that give their entropy
        round otherwise, and other codes may be sampled.
        """
        fits: dict[int, GateFit] = {}
        sums: dict[int, Tensor] = {}
        compilation = CompiledModel(self.model, Options(policy="dense"))
        recorder = HeadRecorder()
        compilation.session.policy = recorder
        for pictures, texts in self._painted(compilation, "dense, with entropy"):
            for scale, entropies in recorder.take(len(texts)).items():
                wanted = importance(pictures, entropies.shape[-1])
                last = scale == len(self.schedule) - 1
                if wanted is not None and entropies.shape[-1] >= _FEWEST_TOKENS and not last:
                    fit = fits.setdefault(
                        scale, GateFit(entropies.shape[1], entropies.shape[2], entropies.device)
                    )
                    fit.add(entropies, wanted)
                maps = entropies.double().mean((1, 2))
                each = torch.stack([maps.mean(1), low_entropy_ratio(maps)]).sum(1).cpu()
                sums[scale] = sums.get(scale, torch.zeros(2, dtype=torch.float64)) + each
        gates = {scale: fit.solve(RIDGE) for scale, fit in fits.items() if fit.tokens > 1}
        counted = compilation.session.counters
        spent = dict.fromkeys(counted.scale_tokens, 0)
        for (scale, _), work in counted.work.items():
            spent[scale] += work.flops_total
        pictures_painted = sum(len(texts) for _, texts in self.batches)
        statistics = [
            {
                "scale": scale,
                "mean_entropy_share": float(total[0]) / pictures_painted,
                "low_entropy_ratio": float(total[1]) / pictures_painted,
            }
            for scale, total in sorted(sums.items())
        ]
        return gates, FlopsModel.of(self.schedule, spent), statistics

    def _damage(self, scales: Sequence[int]) -> dict[tuple[int, float], float]:
        found = {}
        for scale in scales:
            for ratio in RATIOS:
                keep = [ratio if s == scale else 1.0 for s in range(len(self.schedule))]
                measured = self._measure(keep, f"scale {scale}, {ratio:.0%} of the tokens")
                found[scale, ratio] = 1 - measured["ssim"]
        return found

    def _choose(self, planner: Planner) -> tuple[Plan, Mapping[str, float]]:
        """The plan that was asked for, and what it gives on these prompts."""
        if self.settings.min_ssim is None:
            plan = planner.best(self.settings.target_speedup or TARGET_SPEEDUP)
            return plan, self._measure(plan.keep_ratio, "the plan")
        least = self.settings.min_ssim
        for _ in range(_MOST_TRIES):
            plan = planner.fastest(least)
            if plan.times_fewer <= 1:
                break
            measured = self._measure(plan.keep_ratio, "the plan")
            missed = self.settings.min_ssim - measured["ssim"]
            if missed <= 0:
                return plan, measured
            least = max(least, plan.ssim) + max(missed, _SSIM_STEP * (1 - least))
        raise OptionError(
            f"--min-ssim requires an SSIM that some pruning reaches, got {self.settings.min_ssim}; "
            "ask for less"
        )

    def _measure(self, keep_ratio: Sequence[float], label: str) -> dict[str, float]:
        """Mean SSIM to the dense pictures, and how many times fewer FLOPs, of a budget."""
        if min(keep_ratio) == 1:
            return {"ssim": 1.0, "times_fewer_flops": 1.0}
        start = min(scale for scale, ratio in enumerate(keep_ratio) if ratio < 1)
        options = Options(
            keep_ratio=tuple(keep_ratio), start_scale=start, calibration=str(self.gates_alone), strict=True
        )
        compilation = CompiledModel(self.model, options)
        similarities: list[float] = []
        for (pictures, _), dense in zip(self._painted(compilation, label), self.dense, strict=True):
            compared = compare(to_floats(to_bytes(pictures)), to_floats(dense), None)
            similarities += [one["ssim"] for one in compared if one["ssim"] is not None]
        if not similarities:
            raise UnsupportedModelError("calibration requires pictures that are large enough for SSIM")
        total = compilation.session.counters.total()
        return {
            "ssim": sum(similarities) / len(similarities),
            "times_fewer_flops": total.flops_total / total.flops_computed,
        }

    def _painted(self, compilation: CompiledModel, label: str) -> Iterator[tuple[Tensor, Sequence[str]]]:
        with Progress(len(self.batches)) as progress:
            for begin, texts in self.batches:
                progress.step(f"{label}: {texts[0]}")
                with compilation.active(self.model):
                    pictures = paint(self.model, texts, self.settings.seed + begin)
                if not bool(pictures.isfinite().all()):
                    raise EvaluationError(
                        f"calibration requires finite pictures, got NaN or infinity ({label}, first prompt "
                        f"{texts[0]!r}); try another --dtype"
                    )
                yield pictures.detach().float(), texts


def _report(found: Calibration, path: Path) -> str:
    lines = [
        f"wrote {path}: gates of {len(found.gates)} scales, R^2 "
        + ", ".join(f"{gate.explained:.2f}" for gate in found.gates.values()),
        "  times fewer FLOPs  expected SSIM  keep ratio of the scales",
    ]
    for plan in (*found.plans, found.plan):
        kept = " ".join(f"{ratio:g}" for ratio in plan.keep_ratio)
        lines.append(f"  {plan.times_fewer:>17.2f}  {plan.ssim:>13.4f}  {kept}")
    measured = found.record["measured"]
    lines.append(
        f"  the last one is the default; measured: {measured['times_fewer_flops']:.2f} times fewer FLOPs at "
        f"SSIM {measured['ssim']:.4f}"
    )
    return "\n".join(lines)
