"""Pictures of what a calibration found: scales (the paper's figure 8), layers (figure 10), plans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from toprovar_compiler.errors import MissingDependencyError, OptionError
from toprovar_compiler.policies.calibration import Calibration
from toprovar_compiler.policies.layer_spectrum import centred_spectrum, raw_spectrum

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as import_error:
    raise MissingDependencyError(
        "toprovar calibrate requires matplotlib, got none; install it with: "
        "pip install 'toprovar-compiler[evaluation]'"
    ) from import_error

SCALES, LAYERS, PLANS = "scales.png", "layers.png", "plans.png"
_PANEL = (5.2, 3.6)  # inches
_MAP = 1.6  # inches
_COLUMNS = 8
_DPI = 120
_SPREAD = (0.1, 0.9)  # quantiles of the pictures


@dataclass(frozen=True)
class Findings:
    """What is drawn.

    Attributes:
        calibration: the file's content.
        pictures: scale -> [2, P] float64: of each of P pictures the mean entropy, as a share of the largest,
            and the low-entropy ratio rho (eq. 3).
        pruned_from: scale -> [P] float64, the SSIM to the dense picture where it and all later scales keep
            ``pruned_to`` of their tokens.
        layers: the representative scale, and the first picture's entropy map in each layer, [L, h, w]; None
            where no scale has a square grid.
    """

    calibration: Calibration
    pictures: Mapping[int, Tensor]
    pruned_from: Mapping[int, Tensor]
    pruned_to: float
    layers: tuple[int, Tensor] | None


def check_folder(folder: Path) -> None:
    """Before hours are spent on what cannot be written.

    Raises:
        OptionError: no folder can be made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"--plots requires a folder, got {str(folder)!r} ({error.strerror}); name another"
        ) from error


def draw(findings: Findings, folder: Path) -> list[Path]:
    """Write the PNG files; returns their paths.

    Raises:
        OptionError: they cannot be written.
    """
    figures = {SCALES: scales_figure(findings), PLANS: plans_figure(findings.calibration)}
    if findings.layers is not None:
        figures[LAYERS] = layers_figure(*findings.layers)
    for name, figure in figures.items():
        try:
            figure.savefig(folder / name, dpi=_DPI)
        except OSError as error:
            raise OptionError(
                f"--plots requires a folder that can be written, got {error}; name another"
            ) from error
    return [folder / name for name in figures]


def scales_figure(findings: Findings) -> Figure:
    """Mean entropy over scales; rho over scales, each picture coloured by the SSIM of pruning from there."""
    figure = Figure(figsize=(2 * _PANEL[0], _PANEL[1]), layout="constrained")
    entropy, ratio = figure.subplots(1, 2)
    _curve(entropy, findings.pictures, 0)
    entropy.set_ylabel("mean entropy / log keys")
    _curve(ratio, findings.pictures, 1)
    ratio.set_ylabel("low-entropy ratio rho")
    shown = [scale for scale in findings.pruned_from if scale in findings.pictures]
    if shown:
        points = ratio.scatter(
            [scale for scale in shown for _ in findings.pruned_from[scale]],
            [rho for scale in shown for rho in findings.pictures[scale][1].tolist()],
            c=[ssim for scale in shown for ssim in findings.pruned_from[scale].tolist()],
            s=12,
            cmap="viridis",
            zorder=3,
        )
        label = f"SSIM, {findings.pruned_to:.0%} kept from this scale on"
        figure.colorbar(points, ax=ratio, label=label)
    for axes in (entropy, ratio):
        scales = list(findings.pictures)
        sides = [math.isqrt(findings.calibration.schedule[scale]) for scale in scales]
        axes.set_xticks(
            scales, [f"{scale}\n{side}x{side}" for scale, side in zip(scales, sides, strict=True)]
        )
        axes.set_xlabel("scale and its tokens")
        axes.grid(alpha=0.3)
    return figure


def _curve(axes: Axes, pictures: Mapping[int, Tensor], row: int) -> None:
    """The mean over pictures, and where 80 % of them lie."""
    scales = list(pictures)
    low, high = ([float(pair[row].quantile(quantile)) for pair in pictures.values()] for quantile in _SPREAD)
    axes.plot(scales, [float(pair[row].mean()) for pair in pictures.values()], marker="o", label="mean")
    axes.fill_between(scales, low, high, alpha=0.2, label="80 % of the pictures")
    axes.legend()


def plans_figure(calibration: Calibration) -> Figure:
    """Expected SSIM over FLOPs of all plans, and what was measured of the default one."""
    figure = Figure(figsize=_PANEL, layout="constrained")
    axes = figure.subplots()
    plans = sorted((calibration.plan, *calibration.plans), key=lambda plan: plan.times_fewer)
    x, y = [plan.times_fewer for plan in plans], [plan.ssim for plan in plans]
    axes.plot(x, y, marker="o", label="plans, expected")
    default = calibration.plan
    axes.plot(
        [default.times_fewer], [default.ssim], "o", markersize=10, fillstyle="none", label="the default"
    )
    measured = calibration.record["measured"]
    axes.plot([measured["times_fewer_flops"]], [measured["ssim"]], "*", label="the default, measured")
    axes.set_xlabel("FLOPs, times fewer")
    axes.set_ylabel("SSIM to dense")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def layers_figure(scale: int, maps: Tensor) -> Figure:
    """Entropy maps [L, h, w] of all layers, with sigma_1 / sigma_2 of each as it is and less its mean."""
    columns = min(_COLUMNS, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(_MAP * columns, (_MAP + 0.4) * rows + 0.4), layout="constrained")
    axes: Sequence[Axes] = list(figure.subplots(rows, columns, squeeze=False).flatten())
    ratios = torch.stack([raw_spectrum(maps).ratio, centred_spectrum(maps).ratio], 1).tolist()
    for layer, (one, (raw, centred)) in enumerate(zip(maps, ratios, strict=True)):
        axes[layer].imshow(one.numpy(), cmap="viridis")
        axes[layer].set_title(f"layer {layer}\n{raw:.1f}, {centred:.2f}", fontsize=8)
    for unused in axes:
        unused.set_axis_off()
    figure.suptitle(f"entropy at scale {scale}, one picture; sigma1/sigma2 raw, centred", fontsize=9)
    return figure
