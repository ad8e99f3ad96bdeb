"""What the paper's scale and layer dimensions say of a dense run: the low-entropy ratio, the spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.policies.layer_spectrum import centred_spectrum, raw_spectrum
from toprovar_compiler.policies.scale_depth import low_entropy_ratio
from toprovar_compiler.report.labels import scale_title, size_of
from toprovar_compiler.report.markup import Markup, element, markup, table
from toprovar_compiler.report.recording import Calls
from toprovar_compiler.schedule import grid_of


def statistics(calls: Calls) -> Markup:
    """Tables of rho_s per scale (eq. 3) and of varrho = sigma_1 / sigma_2 per layer (section 4)."""
    maps: dict[int, dict[int, Tensor]] = {}
    for (scale, layer), call in sorted(calls.items()):
        if call.entropy is not None:
            maps.setdefault(scale, {})[layer] = call.entropy
    finest = max((scale for scale, layers in maps.items() if _grid(layers) is not None), default=None)
    return markup(_scales(maps), "" if finest is None else _layers(finest, maps[finest]))


def _grid(maps: dict[int, Tensor]) -> tuple[int, int] | None:
    """Height and width of the scale whose maps these are; None where its tokens form no grid."""
    return grid_of(len(next(iter(maps.values()))))


def _scales(maps: dict[int, dict[int, Tensor]]) -> Markup:
    rows = []
    for scale, layers in maps.items():
        stacked = torch.stack(list(layers.values()))
        mean = low_entropy_ratio(stacked.mean(0)).item()
        ratios = low_entropy_ratio(stacked).tolist()
        span = f"{_number(min(ratios))} to {_number(max(ratios))}"
        rows.append([scale_title(scale, stacked.shape[-1]), _number(mean), span])
    caption = "Low-entropy ratio (eq. 3): share of tokens below the scale's mean entropy"
    return table(caption, ["scale", "of the mean over layers", "of the layers"], rows)


def _layers(scale: int, maps: dict[int, Tensor]) -> Markup:
    """Of one scale, whose tokens form a grid."""
    stacked, grid = torch.stack(list(maps.values())), _grid(maps)
    assert grid is not None, "the caller chose a scale with a grid"
    images = stacked.unflatten(-1, grid)
    figures = (stacked.mean(-1), raw_spectrum(images).ratio, centred_spectrum(images).ratio)
    columns = zip(maps, *(figure.tolist() for figure in figures), strict=True)
    rows = [[f"{layer}", *(_number(value) for value in values)] for layer, *values in columns]
    caption = f"Layers at scale {scale} ({size_of(stacked.shape[-1])}): singular values of the entropy map"
    titles = ["layer", "mean, nats", "first / second, as in the paper", "the same, of the map less its mean"]
    remark = (
        "A large ratio is the paper's sign of a Global layer. Of the map as it is, it says little but how "
        "large the mean is beside the differences."
    )
    return markup(table(caption, titles, rows), element("p", remark))


def _number(value: float) -> str:
    return f"{value:.2f}"
