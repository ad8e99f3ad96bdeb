"""What a run leaves for people: a table in Markdown, and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from toprovar_compiler import figures
from toprovar_compiler.evaluation.painter import to_floats
from toprovar_compiler.evaluation.picture_metrics import REGIONS
from toprovar_compiler.evaluation.store import Store
from toprovar_compiler.evaluation.units import Batch
from toprovar_compiler.evaluation.variants import DENSE

SHEET_ROWS = 12
_TILE = 192
_COLUMNS = {
    "composition": ("composition", 3),
    "fid_checker": ("FID (checker)", 2),
    "fid_dense": ("FID to dense", 2),
    "ssim": ("SSIM", 4),
    "ms_ssim": ("MS-SSIM", 4),
    "psnr": ("PSNR, dB", 2),
    "flops_ratio": ("FLOPs, times fewer", 2),
    "latency_s": ("latency, s", 3),
    "speedup_vs_eager": ("faster than eager", 2),
    "speedup_vs_inductor": ("faster than Inductor", 2),
}


def markdown(results: Mapping[str, Any]) -> str:
    """All figures as tables: value, and its interval in brackets."""
    policies: Mapping[str, Any] = results["policies"]
    level = round(100 * results["confidence"]["level"])
    run, machine = results["run"], results["environment"]
    where = ", ".join(gpu["name"] for gpu in machine["gpus"]) or machine["cpu"]
    lines = [
        f"# {', '.join(policies)}",
        "",
        f"{run['prompts']} prompts x {run['samples']} sample(s), the same seeds for all; "
        f"in brackets the {level} % interval of {results['confidence']['resamples']} resamples over prompts. "
        "SSIM, MS-SSIM and PSNR are to the dense picture of the same seed; times are of one picture.",
        "",
        f"`{results['command']}`",
        "",
        f"Commit {_commit(results['commit'])}; torch {machine['torch']} on {run['device']} ({where}), "
        f"{run['dtype']}; model {run['model']}, suite {run['suite'] or 'none'}.",
        "",
        *_table(
            ["policy", *(title for title, _ in _COLUMNS.values())],
            [
                [name, *(_cell(found[key], digits) for key, (_, digits) in _COLUMNS.items())]
                for name, found in policies.items()
            ],
        ),
    ]
    if results["true_scenes"] is not None:
        lines += ["", "## Composition score by task", "", *_task_table(results)]
        lines += ["", "## By region of the dense picture", "", *_region_table(policies)]
    return "\n".join(lines) + "\n"


def sheet(store: Store, policies: Sequence[str], batches: Sequence[Batch]) -> Image:
    """Per prompt, for the first ones: the dense picture, then each other policy's."""
    columns = [DENSE, *(name for name in policies if name != DENSE)]
    units = [unit for batch in batches for unit in batch.units if unit.sample == 0][:SHEET_ROWS]
    pictures = {name: to_floats(store.read_pictures(name, units)) for name in columns}
    rows = [
        figures.Row(unit.text, tuple(figures.to_picture(pictures[name][place]) for name in columns))
        for place, unit in enumerate(units)
    ]
    return figures.sheet(columns, rows, _TILE)


def _task_table(results: Mapping[str, Any]) -> list[str]:
    tasks = list(results["true_scenes"]["per_task"])
    scored = {"true scenes": results["true_scenes"], **results["policies"]}
    rows = [[name, *(_cell(found["per_task"][task], 3) for task in tasks)] for name, found in scored.items()]
    return _table(["policy", *tasks], rows)


def _region_table(policies: Mapping[str, Any]) -> list[str]:
    titles = [f"{region}: {metric}" for region in REGIONS for metric in ("SSIM", "PSNR, dB")]
    rows = []
    for name, found in policies.items():
        regions = [found["regions"][region] for region in REGIONS]
        rows.append([name, *(c for r in regions for c in (_cell(r["ssim"], 4), _cell(r["psnr"], 2)))])
    return _table(["policy", *titles], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return head + [f"| {' | '.join(row)} |" for row in rows]


def _cell(figure: Mapping[str, Any], digits: int) -> str:
    if figure["value"] is None:
        return "-"
    low, high = ("" if bound is None else f"{bound:.{digits}f}" for bound in (figure["low"], figure["high"]))
    return f"{figure['value']:.{digits}f} [{low}, {high}]"


def _commit(commit: Mapping[str, Any] | None) -> str:
    if commit is None:
        return "unknown"
    return f"{commit['id']}{' (modified)' if commit['modified'] else ''}"
