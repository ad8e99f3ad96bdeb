"""The demo: a grid of prompts four ways, a picture of what was skipped, and the proof of effect."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

import toprovar_compiler
from toprovar_compiler import figures
from toprovar_compiler.cli_model import PaintingSettings, load_model
from toprovar_compiler.cli_progress import Progress
from toprovar_compiler.demo_contenders import Contender, make_contenders, psnr, speedup
from toprovar_compiler.doctor import require_compiler
from toprovar_compiler.environment import commit, environment

PROMPTS = (
    "a rocket on a plain navy background",
    "a panda and a balloon on a plain mint background",
    "three apples on a plain teal background",
    "a red mug on a plain white background",
    "a cat left of a tree on a gradient pink to white background",
    "a blue car and a yellow star on a plain beige background",
)
_TILE = 256


def run_demo(settings: PaintingSettings) -> str:
    """Paint, measure, write ``demo.png`` and ``demo.json`` into ``settings.out``; returns the report.

    Raises:
        ToprovarError: no model, no compiler, an option out of range.
        ValueError: the model refuses a prompt.
    """
    model = load_model(settings.model, settings.device, settings.dtype)
    require_compiler(next(model.parameters()).device)
    contenders = make_contenders(model, settings.options)
    kept = _take_turns(contenders, settings)
    record = _record(contenders, settings)
    page = _draw(contenders, kept, settings.prompts)
    picture_path, record_path = settings.out / "demo.png", settings.out / "demo.json"
    figures.save(page, picture_path)
    record_path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    pruned = contenders[-1]
    return "\n".join(
        [
            _report(record),
            str(toprovar_compiler.summary(pruned.model)),
            f"wrote {picture_path} and {record_path}",
        ]
    )


def _take_turns(contenders: Sequence[Contender], settings: PaintingSettings) -> list[dict[int, Tensor]]:
    """Warm up each contender, then let all paint prompt after prompt; the kept tokens of each prompt."""
    kept = []
    with Progress(len(contenders) * (1 + len(settings.prompts))) as progress:
        for contender in contenders:
            progress.step(f"{contender.name}: first picture")
            contender.warm_up(settings.prompts[0], settings.seed)
        for number, prompt in enumerate(settings.prompts):
            for contender in contenders:
                progress.step(f"{contender.name}: {prompt}")
                contender.turn(prompt, settings.seed + number)
            kept.append(toprovar_compiler.kept_tokens(contenders[-1].model))
    return kept


def _record(contenders: Sequence[Contender], settings: PaintingSettings) -> dict[str, Any]:
    eager, inductor, dense, pruned = contenders
    summary = toprovar_compiler.summary(pruned.model).to_dict()
    return {
        "command": shlex.join(["toprovar", *sys.argv[1:]]),
        "commit": commit(),
        "environment": environment(),
        "model": settings.model,
        "device": str(next(eager.model.parameters()).device),
        "dtype": str(next(eager.model.parameters()).dtype).removeprefix("torch."),
        "options": dict(settings.options),
        "prompts": list(settings.prompts),
        "seed": settings.seed,
        "times": {contender.name: contender.times() for contender in contenders},
        "speedups": {
            "toprovar over Inductor": speedup(inductor, pruned),
            "toprovar over eager": speedup(eager, pruned),
            "toprovar dense over Inductor": speedup(inductor, dense),
            "toprovar dense over eager": speedup(eager, dense),
            "Inductor over eager": speedup(eager, inductor),
        },
        "psnr_db": {
            "toprovar to toprovar dense": psnr(pruned.pictures, dense.pictures),
            "toprovar dense to eager": psnr(dense.pictures, eager.pictures),
        },
        "flops_saved": _saved(summary["flops_total"], summary["flops_computed"]),
        "tokens_skipped": _saved(summary["tokens_total"], summary["tokens_computed"]),
        "summary": summary,
    }


def _saved(total: int, computed: int) -> float:
    return 1 - computed / total if total else 0.0


def _report(record: Mapping[str, Any]) -> str:
    """The times and ratios as text."""
    lines = [
        f"whole generations of one picture each, {len(record['prompts'])} prompt(s), all four in turn, on "
        f"{record['device']} in {record['dtype']}; 'first' compiles or reads Inductor's cache, and counts "
        "nowhere else",
        f"{'seconds':<16}{'first':>9}{'median':>9}{'min':>9}{'max':>9}",
    ]
    for name, times in record["times"].items():
        columns = (times["cold_s"], times["median_s"], times["min_s"], times["max_s"])
        lines.append(f"{name:<16}" + "".join(f"{seconds:>9.2f}" for seconds in columns))
    lines += [f"{name}: {ratio:.2f}x" for name, ratio in record["speedups"].items()]
    for pair, decibels in record["psnr_db"].items():
        lines.append(f"PSNR of {pair}: {'equal' if decibels is None else f'{decibels:.1f} dB'}")
    lines.append(f"transformer FLOPs saved: {100 * record['flops_saved']:.1f} %")
    return "\n".join(lines)


def _draw(
    contenders: Sequence[Contender], kept: Sequence[Mapping[int, Tensor]], prompts: Sequence[str]
) -> Image:
    """Per prompt: dense, toprovar, and the tokens computed at each scale that was pruned for any prompt."""
    dense, pruned = contenders[2:]
    scales = sorted({scale for shares in kept for scale in shares})
    rows = []
    for number, prompt in enumerate(prompts):
        picture = figures.to_picture(pruned.pictures[number])
        overlays = [
            figures.kept_overlay(picture, kept[number][scale][0]) if scale in kept[number] else None
            for scale in scales
        ]
        rows.append(figures.Row(prompt, (figures.to_picture(dense.pictures[number]), picture, *overlays)))
    titles = ["dense", "toprovar", *(f"computed at scale {scale}" for scale in scales)]
    return figures.sheet(titles, rows, _TILE)
