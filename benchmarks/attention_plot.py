"""Attention's TFLOP/s over the scales of each model, with the peak of the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.attention_rivals import NAIVE, OURS
from toprovar_compiler.errors import MissingDependencyError

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as import_error:
    raise MissingDependencyError(
        "the plot of the attention benchmark requires matplotlib, got none; install it with: "
        "pip install 'toprovar-compiler[evaluation]'"
    ) from import_error

_PANEL = (5.2, 3.6)  # inches
_DPI = 120


def plot(models: Mapping[str, Sequence[dict[str, Any]]], state: str, peak: float | None, out: Path) -> None:
    """Write a PNG with a panel per model; ``models`` has the records of its scales, coarse to fine.

    Scales that a contender does not support are gaps in its line. The naive form, near the axis, is left out.
    """
    figure = Figure(figsize=(_PANEL[0] * 2, _PANEL[1] * ((len(models) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(models) + 1) // 2, 2, squeeze=False).flatten()
    for axes, (model, results) in zip(panels, models.items(), strict=False):
        _draw(axes, results, state)
        axes.set_title(model)
        if peak is not None:
            axes.axhline(peak, linestyle="--", color="grey", label="peak")
    panels[0].legend(fontsize="small")
    for axes in panels[len(models) :]:
        axes.set_visible(False)
    figure.suptitle(f"bfloat16 attention, {state} L2 cache; toprovar's has the entropy too")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=_DPI)


def _draw(axes: Axes, results: Sequence[dict[str, Any]], state: str) -> None:
    names = dict.fromkeys(name for result in results for name in result[state] if name != NAIVE)
    for name in names:
        rates = [
            result[state][name]["tflops"] if name in result[state] else float("nan") for result in results
        ]
        axes.plot(
            range(len(results)),
            rates,
            marker="o",
            markersize=3,
            linewidth=2 if name == OURS else 1,
            label=name,
        )
    axes.set_xticks(range(len(results)), [str(result["shape"][2]) for result in results], rotation=45)
    axes.set_xlabel("tokens of the scale")
    axes.set_ylabel("TFLOP/s")
