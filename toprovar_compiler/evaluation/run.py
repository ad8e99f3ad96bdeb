"""A whole evaluation: paint and judge what is not finished yet, time, and write the results."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toprovar_compiler import figures
from toprovar_compiler.cli_model import load_model
from toprovar_compiler.doctor import require_compiler
from toprovar_compiler.environment import commit, environment
from toprovar_compiler.evaluation.identity import run_identity
from toprovar_compiler.evaluation.latency import take_turns
from toprovar_compiler.evaluation.painter import Painter
from toprovar_compiler.evaluation.processes import Processes
from toprovar_compiler.evaluation.prompts import read_prompts
from toprovar_compiler.evaluation.report import markdown, sheet
from toprovar_compiler.evaluation.reproducible import reproducible
from toprovar_compiler.evaluation.results import TOO_FEW, make_results, not_computed
from toprovar_compiler.evaluation.stages import judge_true_scenes, paint_policies
from toprovar_compiler.evaluation.store import FORMAT, FORMAT_VERSION, TRUE_SCENES, Store
from toprovar_compiler.evaluation.suite import load_suite
from toprovar_compiler.evaluation.table import Table
from toprovar_compiler.evaluation.units import Batch, make_batches
from toprovar_compiler.evaluation.variants import parse_variants
from toprovar_compiler.options import DEFAULT_MODE

# More at a time saves no time on a CPU, and a GPU would wait for its host.
_CPU_BATCH, _GPU_BATCH = 8, 32
RESULTS, TABLE, SHEET = "results.json", "results.md", "sheet.png"


@dataclass(frozen=True)
class Settings:
    """What to compare, on which prompts, and where to write.

    Attributes:
        model, suite: ``module:function``; see :func:`~toprovar_compiler.evaluation.suite.load_suite`.
        policies: what to compare, see :func:`~toprovar_compiler.evaluation.variants.parse_variants`.
        prompts: a number, or the path of a text file.
        batch: pictures at a time; None: as the device likes it.
        timed: how many prompts, at most, to time; 0 for none.
        options: the compiler's, all but the policy, unless a policy's name says otherwise.
    """

    model: str
    suite: str | None
    device: str
    dtype: str | None
    policies: Sequence[str] | None
    prompts: str
    samples: int
    batch: int | None
    timed: int
    seed: int
    options: Mapping[str, Any]
    out: Path


@dataclass(frozen=True)
class Report:
    """What to print, and whether there were enough pictures for every metric."""

    text: str
    enough: bool = True


def evaluate(settings: Settings, processes: Processes) -> Report:
    """Run, or go on with, an evaluation; rank 0 writes the results once all processes are done.

    Raises:
        ToprovarError: bad input, no model, a folder of other results, a process that ended.
        ValueError: the model or the suite refuses a prompt.
    """
    variants = parse_variants(settings.policies, settings.options)
    policies = [variant.name for variant in variants]
    model = load_model(settings.model, processes.device(settings.device), settings.dtype)
    device = next(model.parameters()).device
    require_compiler(device)
    suite = load_suite(settings.suite, settings.model, device)
    prompts = read_prompts(settings.prompts, settings.seed, suite)
    size = settings.batch or (_CPU_BATCH if device.type == "cpu" else _GPU_BATCH)
    batches = make_batches(prompts, settings.samples, settings.seed, size)
    painters = [Painter(model, variant, batches[0]) for variant in variants]
    run = run_identity(model, suite, prompts, _figures_depend_on(settings, batches))
    store = Store(settings.out)
    store.open(run)
    with processes.joined(device), reproducible():
        mine, first = processes.share(batches), processes.rank == 0
        if suite is not None:
            judge_true_scenes(store, suite, mine, device, show=first)
        paint_policies(store, suite, painters, mine, show=first)
        processes.wait()
    if not first:
        return Report("")
    units = [unit for batch in batches for unit in batch.units if unit.sample == 0]
    times = take_turns(
        model, variants, units[: settings.timed], store, settings.options.get("mode", DEFAULT_MODE)
    )
    tables = {policy: _table(store, policy, batches, len(prompts)) for policy in policies}
    true_scenes = _table(store, TRUE_SCENES, batches, len(prompts)) if suite is not None else None
    results = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "command": shlex.join(["toprovar", *sys.argv[1:]]),
        "commit": commit(),
        "environment": environment(),
        "processes": processes.count,
        "run": run,
        **make_results(tables, true_scenes, times, settings.seed),
    }
    return _write(store, results, policies, batches)


def _figures_depend_on(settings: Settings, batches: Sequence[Batch]) -> dict[str, Any]:
    """The settings that results of one folder must share."""
    return {
        "model": settings.model,
        "samples": settings.samples,
        "batch": batches[0].size,
        "seed": settings.seed,
        "options": dict(settings.options),
    }


def _table(store: Store, name: str, batches: Sequence[Batch], prompts: int) -> Table:
    return Table([store.read_unit(name, batch) for batch in batches], prompts)


def _write(
    store: Store, results: Mapping[str, Any], policies: Sequence[str], batches: Sequence[Batch]
) -> Report:
    table = markdown(results)
    written = [
        store.write_text(RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n"),
        store.write_text(TABLE, table),
        store.folder / SHEET,
    ]
    figures.save(sheet(store, policies, batches), written[-1])
    reasons = not_computed(results)
    lines = [table, *(f"{metric} was not computed: {reason}" for metric, reason in reasons.items())]
    lines.append(f"wrote {', '.join(map(str, written))}")
    return Report("\n".join(lines), not any(reason.startswith(TOO_FEW) for reason in reasons.values()))
