"""The command's work: read what was asked for, calibrate, write the file and the pictures, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from toprovar_compiler.calibration.bench import Bench
from toprovar_compiler.calibration.budgets import RATIOS
from toprovar_compiler.calibration.calibrator import Aim, Calibrator, growing_schedule
from toprovar_compiler.calibration.parts import Parts
from toprovar_compiler.calibration.plots import Findings, check_folder, draw
from toprovar_compiler.cli_model import load_model
from toprovar_compiler.errors import OptionError
from toprovar_compiler.evaluation.identity import run_identity
from toprovar_compiler.evaluation.processes import Processes
from toprovar_compiler.evaluation.prompts import read_prompts
from toprovar_compiler.evaluation.reproducible import reproducible
from toprovar_compiler.evaluation.run_folder import whole
from toprovar_compiler.evaluation.suite import load_suite
from toprovar_compiler.evaluation.units import make_batches
from toprovar_compiler.policies.calibration import Calibration

PARTS = ".parts"
"""What is appended to the file's name for the folder of finished parts."""


@dataclass(frozen=True)
class Settings:
    """What to calibrate on, for what, and where to write.

    Attributes:
        model, suite: ``module:function``.
        prompts: a number, or the path of a text file.
        batch: pictures at a time.
        aim: the plan that is asked for.
        plots: a folder for pictures of what was found; None for none.
    """

    model: str
    suite: str | None
    device: str
    dtype: str | None
    prompts: str
    seed: int
    batch: int
    aim: Aim
    out: Path
    plots: Path | None = None


def calibrate(settings: Settings, processes: Processes) -> str:
    """Do it, or go on with it; returns what to print, which is nothing in all processes but the first.

    Raises:
        ToprovarError: bad input, a model that cannot be pruned, parts of another run, a process that ended.
        ValueError: the suite refuses the number of prompts.
    """
    out = settings.out
    if not out.absolute().parent.is_dir() or out.is_dir():
        raise OptionError(f"--out requires a file in a folder that exists, got {str(out)!r}")
    if settings.plots is not None:
        check_folder(settings.plots)
    model = load_model(settings.model, processes.device(settings.device), settings.dtype)
    device = next(model.parameters()).device
    suite = load_suite(settings.suite, settings.model, device)
    prompts = read_prompts(settings.prompts, settings.seed, suite)
    batches = make_batches(prompts, 1, settings.seed, settings.batch)
    growing_schedule(model)
    asked = {"model": settings.model, "batch": batches[0].size, "seed": settings.seed}
    parts = Parts(out.with_name(out.name + PARTS), run_identity(model, suite, prompts, asked))
    with torch.no_grad(), processes.joined(device), reproducible():
        calibrator = Calibrator(Bench(model, batches, processes, parts), settings.aim)
        found = calibrator.calibration()
        findings = None if settings.plots is None else _findings(calibrator, found)
        processes.wait()  # what others still read must stay
    if processes.rank != 0:
        return ""
    with whole(out) as unfinished:
        found.save(unfinished)
    report = _report(found, out)
    if findings is not None and settings.plots is not None:
        report += "\nwrote " + ", ".join(map(str, draw(findings, settings.plots)))
    parts.remove()
    return report


def _findings(calibrator: Calibrator, found: Calibration) -> Findings:
    tried = sorted({row["scale"] for row in found.record["damage"]})
    strongest = min(RATIOS)
    return Findings(
        calibration=found,
        pictures=calibrator.lessons.of_pictures(),
        pruned_from=calibrator.pruned_from(tried, strongest),
        pruned_to=strongest,
        layers=calibrator.lessons.representative(),
    )


def _report(found: Calibration, path: Path) -> str:
    lines = [
        f"wrote {path}: gates of {len(found.gates)} scales, R^2 "
        + ", ".join(f"{gate.explained:.2f}" for gate in found.gates.values()),
        "  times fewer FLOPs  expected SSIM  guidance until  keep ratio of the scales",
    ]
    for plan in (*found.plans, found.plan):
        kept = " ".join(f"{ratio:g}" for ratio in plan.keep_ratio)
        until = "the end" if plan.guidance_until is None else f"scale {plan.guidance_until}"
        lines.append(f"  {plan.times_fewer:>17.2f}  {plan.ssim:>13.4f}  {until:>14}  {kept}")
    measured = found.record["measured"]
    lines.append(
        f"  the last one is the default; measured: {measured['times_fewer_flops']:.2f} times fewer FLOPs at "
        f"SSIM {measured['ssim']:.4f}"
    )
    return "\n".join(lines)
