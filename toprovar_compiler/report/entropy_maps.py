"""Entropy maps as a table of heat maps: a scale per row, a layer per column."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toprovar_compiler.report.images import RAMP, UNKNOWN, heat_map
from toprovar_compiler.report.labels import scale_title
from toprovar_compiler.report.markup import Markup, element, image, markup, table
from toprovar_compiler.report.recording import Call, Calls


def entropy_table(caption: str, calls: Calls) -> Markup | None:
    """Every map of a generation; None if no block returned its entropy.

    The colours of a row run from its lowest to its highest value, which the row's title says in nats: with
    one range for all, the scales' growing number of keys would hide what differs between tokens.
    """
    if all(call.entropy is None for call in calls.values()):
        return None
    scales, layers = (sorted(set(numbers)) for numbers in zip(*calls, strict=True))
    rows = [_row(scale, [calls.get((scale, layer)) for layer in layers], layers) for scale in scales]
    return table(caption, ["scale", *(f"layer {layer}" for layer in layers)], rows)


def entropy_legend() -> Markup:
    """What colours and numbers mean."""
    return markup(
        element(
            "p",
            "Entropy of a token's attention in nats, mean over heads, of the first batch row (the "
            "conditional one under guidance): 0 where all attention goes to one key, ln(keys) where it is "
            "spread evenly. ",
            "Each row has its own range: ",
            _bar("lowest", "highest"),
            ", in nats. The number under a map is its mean. ",
            element("span", "", class_="swatch", style=f"background:{UNKNOWN}"),
            " not computed; - no map: not asked for, or a graph of one token, which is not rewritten.",
        )
    )


def _row(scale: int, calls: Sequence[Call | None], layers: Sequence[int]) -> list[object]:
    maps = [None if call is None else call.entropy for call in calls]
    known = torch.cat([torch.empty(0), *(m[m.isfinite()] for m in maps if m is not None)])
    low, high = (float(known.min()), float(known.max())) if known.numel() else (0.0, 0.0)
    tokens = next(call.tokens for call in calls if call is not None)
    title = scale_title(scale, tokens)
    if known.numel():
        title = markup(title, " ", _bar(f"{low:.2f}", f"{high:.2f} nats"))
    return [title, *(_cell(m, scale, layer, low, high) for m, layer in zip(maps, layers, strict=True))]


def _cell(entropy: Tensor | None, scale: int, layer: int, low: float, high: float) -> Markup:
    if entropy is None:
        return markup("-")
    known = entropy[entropy.isfinite()]
    mean = f"{float(known.mean()):.2f}" if known.numel() else "-"
    alt = f"entropy at scale {scale}, layer {layer}: mean {mean} nats over {known.numel()} tokens"
    return markup(image(heat_map(entropy, low, high), alt, class_="map"), element("small", mean))


def _bar(low: str, high: str) -> Markup:
    ramp = element("span", "", class_="ramp", style=f"background:linear-gradient(90deg,{','.join(RAMP)})")
    return element("span", low, " ", ramp, " ", high, class_="range")
