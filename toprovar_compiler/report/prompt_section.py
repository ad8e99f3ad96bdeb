"""The part of the page that belongs to one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toprovar_compiler import figures
from toprovar_compiler.demo_contenders import psnr
from toprovar_compiler.report.decisions import first_pruned_scale, kept_table
from toprovar_compiler.report.entropy_maps import entropy_legend, entropy_table
from toprovar_compiler.report.images import AMPLIFIED, difference, small
from toprovar_compiler.report.labels import size_of
from toprovar_compiler.report.markup import Markup, element, image, markup
from toprovar_compiler.report.painting import Pair
from toprovar_compiler.report.statistics import statistics

if TYPE_CHECKING:
    from PIL.Image import Image

_OVERLAY = 256


def prompt_section(number: int, pair: Pair, policy: str, reasons: Sequence[str]) -> Markup:
    """Pictures, what was computed, and entropy maps; ``reasons`` say why something could not be pruned."""
    start = first_pruned_scale(pair)
    first = "no scale was pruned" if start is None else f"first pruned scale: {start}"
    return element(
        "section",
        element("h2", f"{number}. {pair.prompt}"),
        element("p", f"Seed {pair.seed}; {first}."),
        _pictures(pair, policy),
        element("h3", "Where tokens were computed"),
        _overlays(pair),
        kept_table(pair),
        element("h3", "Entropy"),
        _entropy(pair, policy, reasons),
        id=f"prompt-{number}",
    )


def _pictures(pair: Pair, policy: str) -> Markup:
    dense, pruned = pair.dense.picture, pair.pruned.picture
    figure = [
        _figure(_drawn(dense), f"dense picture of: {pair.prompt}", "dense", _broken(dense)),
        _figure(_drawn(pruned), f"picture under {policy} of: {pair.prompt}", policy, _broken(pruned)),
    ]
    if dense.shape == pruned.shape:
        a, b = _finite(dense), _finite(pruned)
        caption = f"difference x {AMPLIFIED}"
        figure.append(
            _figure(difference(a, b), f"difference of the two, x {AMPLIFIED}", caption, _error(a, b))
        )
    return element("div", *figure, class_="pictures")


def _figure(picture: Image, alt: str, caption: str, remark: str) -> Markup:
    return element("figure", image(picture, alt), element("figcaption", element("b", caption), f" {remark}"))


def _drawn(picture: Tensor) -> Image:
    return figures.to_picture(_finite(picture))


def _finite(picture: Tensor) -> Tensor:
    return picture.nan_to_num().clamp(0, 1)


def _broken(picture: Tensor) -> str:
    """A remark on values that cannot be drawn."""
    broken = int(picture.numel() - torch.isfinite(picture).sum())
    return f"({broken} values are not finite: drawn black or white)" if broken else ""


def _error(a: Tensor, b: Tensor) -> str:
    decibels = psnr([b], [a])
    mean = f"mean {float((a - b).abs().mean()):.4f} of 1"
    return f"{mean}; the pictures are equal" if decibels is None else f"{mean}; PSNR {decibels:.1f} dB"


def _overlays(pair: Pair) -> Markup:
    """The policy's picture once per pruned scale, shaded where tokens were not computed."""
    if not pair.pruned.kept:
        return element("p", "All tokens of all scales were computed in all layers.")
    picture = small(_drawn(pair.pruned.picture), _OVERLAY)
    shown = []
    for scale, share in sorted(pair.pruned.kept.items()):
        overlay = figures.kept_overlay(picture, share)
        remark = f"{size_of(share.numel())}, {100 * float(share.mean()):.1f} % computed"
        if overlay is None:
            shown.append(element("p", f"Scale {scale}: {remark}; tokens are on no square grid."))
        else:
            alt = f"tokens that were computed at scale {scale}: {remark}"
            shown.append(_figure(overlay, alt, f"scale {scale}:", remark))
    shade = "Shaded tokens were not computed at that scale; the stronger, the fewer layers computed them."
    return markup(element("p", shade), element("div", *shown, class_="overlays"))


def _entropy(pair: Pair, policy: str, reasons: Sequence[str]) -> Markup:
    dense = entropy_table("Dense: every scale, every layer", pair.dense.calls)
    if dense is None:
        why = "; ".join(reasons) or "the model's graphs cannot be rewritten to return it"
        return element("p", f"No block returned the entropy of its attention: {why}.")
    seen = entropy_table(f"Under {policy}: what its blocks returned", pair.pruned.calls)
    return markup(
        entropy_legend(),
        dense,
        element("p", f"Under {policy} no block returned its entropy: none was asked for.")
        if seen is None
        else seen,
        statistics(pair.dense.calls),
    )
