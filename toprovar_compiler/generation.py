"""Where a running generation stands."""

from __future__ import annotations

from torch import Size, Tensor

from toprovar_compiler.policies.base import Step


class Generation:
    """The scales and layers that ran so far, what they kept, and the codes that are to be zeroed."""

    def __init__(self, rows_per_sample: int | None) -> None:
        self.rows_per_sample = rows_per_sample
        self.scale = 0
        self.tokens = 0
        self.prefix = 0
        self.rows = 0
        self.finished = False
        self.sees_codes = False
        self.layers: dict[int, int] = {}
        self.layers_done: set[int | None] = set()
        self.kept: dict[int, list[tuple[int, Tensor | None]]] = {}
        self.exit_mask: Tensor | None = None

    def next_scale(self) -> None:
        self.scale += 1
        self.prefix += self.tokens
        self.layers_done.clear()
        self.exit_mask = None

    def layer_done(self, step: Step, kept: Tensor | None, exits: bool) -> None:
        """``kept`` [samples, K] or None for all; under ``exits`` the other tokens' codes are to be zeroed."""
        if exits and kept is not None and not self.layers_done:
            empty = kept.new_zeros(step.samples, step.tokens)
            self.exit_mask = empty.scatter(1, kept, 1)
        self.layers_done.add(step.layer)
        self.kept.setdefault(step.scale, []).append((step.tokens, kept))

    def take_exit_mask(self, shape: Size) -> Tensor | None:
        """The mask [samples, N] of this scale, once: it is gone afterwards."""
        mask = self.exit_mask
        if mask is None or mask.shape != shape:
            return None
        self.exit_mask = None
        return mask
