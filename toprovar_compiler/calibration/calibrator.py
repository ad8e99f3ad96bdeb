"""A whole calibration: paint dense, fit the gates, prune each scale alone, plan."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from toprovar_compiler.calibration.bench import Bench
from toprovar_compiler.calibration.budgets import RATIOS, Planner, scales_worth_pruning
from toprovar_compiler.calibration.lessons import Lessons, lesson
from toprovar_compiler.calibration.recorder import HeadRecorder
from toprovar_compiler.calibration.trials import Trials
from toprovar_compiler.compiled_model import CompiledModel
from toprovar_compiler.counters import Counters
from toprovar_compiler.environment import commit, environment
from toprovar_compiler.errors import OptionError, UnsupportedModelError
from toprovar_compiler.evaluation.run_folder import whole
from toprovar_compiler.evaluation.units import Batch
from toprovar_compiler.options import Options
from toprovar_compiler.policies.artifacts import fingerprint, sketch
from toprovar_compiler.policies.calibration import Calibration, Plan
from toprovar_compiler.schedule import stated_schedule

TARGET_SPEEDUP = 3.4
"""Times fewer FLOPs, the paper's on Infinity-2B: what is planned for if nothing is asked for."""
_FEWEST_SCALES = 3
_SSIM_STEP = 0.25  # of what was missed, by which the next plan is milder
_MOST_TRIES = 6
_LEARNED = "learned"


@dataclass(frozen=True)
class Aim:
    """The plan that is asked for.

    Attributes:
        target_speedup: times fewer FLOPs; or
        min_ssim: the mean SSIM to the dense pictures.
    """

    target_speedup: float | None = None
    min_ssim: float | None = None


class Calibrator:
    """Learns and plans, the same in every process.

    Raises:
        UnsupportedModelError: the model states no schedule of scales that grow.
    """

    def __init__(self, bench: Bench, aim: Aim) -> None:
        self.bench, self.aim = bench, aim
        self.schedule = growing_schedule(bench.model)
        self.trials = Trials(bench)
        self.lessons = Lessons(self.schedule)

    def calibration(self) -> Calibration:
        """Do all that is not finished yet.

        Raises:
            ToprovarError: the model cannot be pruned as asked, a damaged part, or a process that ended.
        """
        self._learn()
        model, gates, flops = self.bench.model, self.lessons.gates(), self.lessons.flops()
        scales = scales_worth_pruning(flops, gates)
        if not scales:
            raise UnsupportedModelError(
                "calibration requires a scale with a square token grid that holds 2 % of the FLOPs, got none "
                f"in the schedule {self.schedule}; toprovar cannot prune this model"
            )
        unplanned = Calibration(
            model=type(model).__name__,
            fingerprint=fingerprint(model),
            sketch=sketch(model),
            schedule=self.schedule,
            gates=gates,
            plan=Plan(1.0, 1.0, (1.0,) * len(self.schedule)),
        )
        if self.bench.processes.rank == 0:
            with whole(self.bench.parts.gates) as unfinished:
                unplanned.save(unfinished)
        self.trials.paint_dense()
        self.bench.processes.wait()
        damage = self._damage(scales)
        ended = self._ended(scales)
        planner = Planner(flops, damage, ended)
        plan, measured = self._choose(planner)
        record = {
            "command": shlex.join(["toprovar", *sys.argv[1:]]),
            "commit": commit(),
            "environment": environment(),
            "pictures": sum(len(batch.units) for batch in self.bench.batches),
            "seed": self.bench.batches[0].seed,
            "measured": measured,
            "scales": self.lessons.statistics(),
            "damage": [{"scale": s, "keep_ratio": r, "ssim": 1 - harm} for (s, r), harm in damage.items()],
            "guidance_ended": [{"scale": scale, "ssim": 1 - harm} for scale, harm in ended.items()],
        }
        return dataclasses.replace(unplanned, plan=plan, plans=planner.menu(), record=record)

    def pruned_from(self, scales: Iterable[int], ratio: float) -> dict[int, Tensor]:
        """scale -> [pictures] float64, the SSIM where it and all later scales keep so much of their tokens.

        Args:
            scales: of which the calibration, which must be there, has tried all.
        """
        budgets = {
            start: [ratio if scale >= start else 1.0 for scale in range(len(self.schedule))]
            for start in scales
        }
        for start, keep in budgets.items():
            self.trials.run(keep, f"from scale {start} on, {ratio:.0%} of the tokens")
        self.bench.processes.wait()
        return {start: self.trials.ssim(keep) for start, keep in budgets.items()}

    def _learn(self) -> None:
        """What the dense pictures teach.

        These pictures are not the ones to compare with: in low precision, blocks that give their entropy
        round otherwise, and other codes may be sampled.
        """
        compilation = CompiledModel(self.bench.model, Options(policy="dense"))
        recorder = HeadRecorder()
        compilation.session.policy = recorder
        label = "dense, with entropy"

        def learn(batch: Batch) -> dict[str, Tensor]:
            counted = compilation.session.counters
            counted.clear()
            pictures = self.bench.paint(compilation, batch, label)
            entropies = recorder.take(len(batch.units))
            return lesson(entropies, pictures, self._flops_of_scales(counted))

        self.bench.finish(_LEARNED, label, learn)
        self.bench.processes.wait()
        for batch in self.bench.batches:
            self.bench.parts.read(_LEARNED, batch.number, self.lessons.add)

    def _flops_of_scales(self, counted: Counters) -> list[int]:
        ran = dict(sorted(counted.scale_tokens.items()))
        if any(scale >= len(self.schedule) or self.schedule[scale] != ran[scale] for scale in ran):
            raise UnsupportedModelError(
                f"calibration requires a model that runs the scales that it states, {self.schedule} "
                f"tokens, got {tuple(ran.values())}; mend its attribute patch_nums"
            )
        spent = [0] * len(self.schedule)
        for (scale, _), work in counted.work.items():
            spent[scale] += work.flops_total
        return spent

    def _damage(self, scales: Sequence[int]) -> dict[tuple[int, float], float]:
        budgets = {
            (scale, ratio): [ratio if s == scale else 1.0 for s in range(len(self.schedule))]
            for scale in scales
            for ratio in RATIOS
        }
        for place, ((scale, ratio), keep) in enumerate(budgets.items()):
            self.trials.run(keep, f"scale {scale}, {ratio:.0%} of the tokens", again=place == 0)
        self.bench.processes.wait()
        return {tried: 1 - _mean(self.trials.ssim(keep)) for tried, keep in budgets.items()}

    def _ended(self, scales: Sequence[int]) -> dict[int, float]:
        """What it costs to end guidance at a scale, all tokens kept; nothing where there is none to end."""
        keep = [1.0] * len(self.schedule)
        for scale in scales:
            self.trials.run(keep, f"no guidance from scale {scale} on", guidance_until=scale)
        self.bench.processes.wait()
        return {
            scale: 1 - _mean(self.trials.ssim(keep, scale))
            for scale in scales
            if self.trials.times_fewer(keep, scale) > 1
        }

    def _choose(self, planner: Planner) -> tuple[Plan, Mapping[str, float]]:
        """The plan that was asked for, and what it gives on these prompts."""
        if self.aim.min_ssim is None:
            plan = planner.best(self.aim.target_speedup or TARGET_SPEEDUP)
            return plan, self._try(plan)
        least = self.aim.min_ssim
        for _ in range(_MOST_TRIES):
            plan = planner.fastest(least)
            if plan.times_fewer <= 1:
                break
            measured = self._try(plan)
            missed = self.aim.min_ssim - measured["ssim"]
            if missed <= 0:
                return plan, measured
            least = max(least, plan.ssim) + max(missed, _SSIM_STEP * (1 - least))
        raise OptionError(
            f"--min-ssim requires an SSIM that some pruning reaches, got {self.aim.min_ssim}; ask for less"
        )

    def _try(self, plan: Plan) -> dict[str, float]:
        budget = plan.keep_ratio, plan.guidance_until
        if not plan.pruned_scales and plan.guidance_until is None:
            return {"ssim": 1.0, "times_fewer_flops": 1.0}
        self.trials.run(plan.keep_ratio, "the plan", guidance_until=plan.guidance_until)
        self.bench.processes.wait()
        return {
            "ssim": _mean(self.trials.ssim(*budget)),
            "times_fewer_flops": self.trials.times_fewer(*budget),
        }


def growing_schedule(model: nn.Module) -> tuple[int, ...]:
    """Tokens of each scale, as the model states them.

    Raises:
        UnsupportedModelError: it states none, too few, or scales that do not grow.
    """
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
    return schedule


def _mean(values: Tensor) -> float:
    found: list[float] = values.tolist()
    return sum(found) / len(found)
