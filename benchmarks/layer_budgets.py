"""Which layers run in full, at the same FLOPs: some in full and the others pruned harder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toprovar_compiler.calibration.budgets import FlopsModel
from toprovar_compiler.errors import OptionError

_HALVINGS = 50  # of the interval in which the ratio lies: down to float64's own rounding


def equal_flops(flops: FlopsModel, start_scale: int, keep_ratio: float, full: int, layers: int) -> float:
    """What the other layers keep where ``full`` of them run in full, for the FLOPs of all at ``keep_ratio``.

    Args:
        flops: of the model, all layers.
        start_scale: the first pruned scale.
        full: how many of the ``layers`` run in full.

    Raises:
        OptionError: the full layers alone take more.
    """

    def total(ratio: float) -> float:
        late = len(flops.schedule) - start_scale
        return flops.total([1.0] * start_scale + [ratio] * late)

    wanted = (layers * total(keep_ratio) - full * total(1.0)) / (layers - full)
    low, high = 0.0, keep_ratio
    if wanted < total(low):
        raise OptionError(
            f"equal FLOPs require fewer layers in full, got {full} of {layers} at keep_ratio={keep_ratio}: "
            "they take more than all together may; raise keep_ratio"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) <= wanted else (low, middle)
    return round(low, 4)


def in_full(options: Mapping[str, Any], layers: int, full: Sequence[int]) -> dict[str, Any]:
    """``options`` with these layers run in full and all others pruned."""
    return {**options, "layer_budgets": [0.0 if layer in full else 1.0 for layer in range(layers)]}


def pruned_alone(options: Mapping[str, Any], layers: int, pruned: int) -> dict[str, Any]:
    """``options`` with this layer pruned and all others run in full."""
    return in_full(options, layers, [layer for layer in range(layers) if layer != pruned])


def strongest(values: Sequence[float], count: int) -> list[int]:
    """The layers of the largest values, in ascending order; of equal ones the first."""
    return sorted(sorted(range(len(values)), key=lambda layer: -values[layer])[:count])
