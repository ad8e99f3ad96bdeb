"""``toprovar pareto``: quality over speed of several evaluations, a line per policy over its strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toprovar_compiler.errors import ArtifactError, MissingDependencyError, OptionError
from toprovar_compiler.evaluation.run_folder import read_json
from toprovar_compiler.evaluation.store import FORMAT, FORMAT_VERSION
from toprovar_compiler.evaluation.variants import line_of

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as import_error:
    raise MissingDependencyError(
        "toprovar pareto requires matplotlib, got none; install it with: "
        "pip install 'toprovar-compiler[evaluation]'"
    ) from import_error

SUFFIXES = (".png", ".svg", ".pdf")
_SPEEDS = {"flops_ratio": "FLOPs, times fewer", "speedup_vs_eager": "times faster than eager"}
_QUALITIES = {
    "composition": "composition score",
    "fid_checker": "FID (checker)",
    "ssim": "SSIM to dense",
}
# Runs may differ in how strongly they prune, and in nothing else that their figures depend on.
_COMMON = ("device", "dtype", "weights", "suite_fingerprint", "prompts_digest", "samples", "seed")
_PANEL = (5.2, 3.6)  # inches
_DPI = 120


class Point(NamedTuple):
    """One policy in one run; x and y each as value, low and high."""

    policy: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def plot(folders: Sequence[Path], out: Path) -> str:
    """Draw every quality that the runs have over every speed that they have; returns what to print.

    Raises:
        ArtifactError: a folder without results, or results that cannot be compared.
        OptionError: ``out`` has another suffix than .png, .svg or .pdf.
    """
    if out.suffix not in SUFFIXES:
        raise OptionError(f"--out requires a file that ends in {', '.join(SUFFIXES)}, got {out.name!r}")
    runs = [_read(folder) for folder in folders]
    _check_comparable(folders, runs)
    panels = [
        (quality, speed, points)
        for quality in _QUALITIES
        for speed in _SPEEDS
        if (points := _points(runs, quality, speed))
    ]
    columns = len({speed for _, speed, _ in panels})
    rows = len(panels) // columns
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for place, (quality, speed, points) in enumerate(panels):
        _draw(axes[place], points)
        axes[place].set_xlabel(_SPEEDS[speed])
        axes[place].set_ylabel(_QUALITIES[quality])
    axes[0].legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=_DPI)
    return f"wrote {out}"


def _draw(axes: Axes, points: Sequence[Point]) -> None:
    for policy in dict.fromkeys(point.policy for point in points):
        own = sorted((point for point in points if point.policy == policy), key=lambda point: point.x)
        x, y = [point.x[0] for point in own], [point.y[0] for point in own]
        axes.errorbar(
            x, y, xerr=_bars([point.x for point in own]), yerr=_bars([point.y for point in own]),
            marker="o", capsize=2, label=policy,
        )  # fmt: skip
    axes.grid(alpha=0.3)


def _bars(intervals: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """Lengths downwards and upwards."""
    return [
        [value - low for value, low, _ in intervals],
        [high - value for value, _, high in intervals],
    ]


def _points(runs: Sequence[Mapping[str, Any]], quality: str, speed: str) -> list[Point]:
    found = []
    for run in runs:
        for policy, figures in run["policies"].items():
            x, y = figures[speed], figures[quality]
            if x["value"] is not None and y["value"] is not None:
                found.append(Point(line_of(policy), _interval(x), _interval(y)))
    return found


def _interval(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    return figure["value"], figure["low"], figure["high"]


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.exists():
        raise ArtifactError(
            f"{folder} requires a results.json, got none; let toprovar evaluate finish there first"
        )
    results = read_json(path)
    if results.get("format") != FORMAT or results.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} requires format {FORMAT!r} {FORMAT_VERSION}, got {results.get('format')!r} "
            f"{results.get('format_version')!r}; evaluate anew"
        )
    return results


def _check_comparable(folders: Sequence[Path], runs: Sequence[Mapping[str, Any]]) -> None:
    first = runs[0]["run"]
    for folder, results in zip(folders, runs, strict=True):
        for key in _COMMON:
            if results["run"][key] != first[key]:
                raise ArtifactError(
                    f"one plot requires runs of the same {key}, got {first[key]!r} in {folders[0]} and "
                    f"{results['run'][key]!r} in {folder}; plot them apart"
                )
