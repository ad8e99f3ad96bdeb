"""Where a running generation stands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Size, Tensor

from toprovar_compiler.policies.base import Step

FlopsOf = Callable[[int, int], int | None]
"""FLOPs of a layer for (tokens, earlier tokens) of another scale; None where its graph cannot tell."""

# Conditional, unconditional, and a second condition: no guidance scheme runs more rows for one sample.
_MOST_GUIDANCE_ROWS = 3


class Generation:
    """The scales and layers that ran so far, what they kept, and the codes that are to be zeroed.

    Args:
        rows_per_sample: if that is known.
        earlier: N of each scale of the generation before; that of this one is likely to be the same.
    """

    def __init__(self, rows_per_sample: int | None, earlier: tuple[int, ...] = ()) -> None:
        self.rows_per_sample, self.earlier = rows_per_sample, earlier
        self.scale = 0
        self.tokens = 0
        self.prefix = 0
        self.rows = 0
        self.finished = False
        self.exited = False
        self.asked = 0
        """The scale that the model's loop asked for last."""
        self.replaces_at: int | None = None
        """The scale that is due, if conditional rows stand for the unconditional ones there."""
        self.refused_at: int | None = None
        """The scale at which they cannot stand for them."""
        self.halving = self.halved = False
        """Whether the block call that runs has half of the rows, and whether one had."""
        self.sees_codes = False
        self.codes_of: int | None = None
        self.layers: dict[int, int] = {}
        self.lengths: dict[int, tuple[int, int]] = {}
        """Tokens, and keys of earlier scales, that each layer had when it was called last, by its key."""
        self.layers_done: set[int | None] = set()
        self.kept: dict[int, list[tuple[int, Tensor | None]]] = {}
        self.exit_mask: Tensor | None = None
        self._left_over: Tensor | None = None
        self.device: torch.device | None = None
        self.flops_of: dict[int, FlopsOf] = {}

    def starts_anew(self, layer_key: int, tokens: int, cached: int) -> bool:
        """Whether a layer's call with ``cached`` keys of earlier scales belongs to the next generation.

        A cache only grows within a generation. Without one (a model whose scales do not see each other) the
        scales themselves grow. A prompt may make the first scale larger than the second.
        """
        if layer_key not in self.lengths:
            return cached == 0 and any(earlier for _, earlier in self.lengths.values())
        before, cached_before = self.lengths[layer_key]
        return cached < cached_before or (cached == cached_before and tokens <= before)

    def guided_rows(self, rows: int) -> int:
        """How many of ``rows`` belong to one sample: fewer from the scale on at which guidance ends."""
        known = self.rows_per_sample or 1
        samples = self.rows // known
        if known > 1 and samples and rows < self.rows and not rows % samples:
            self.rows_per_sample = rows // samples
        return self.rows_per_sample or 1

    def next_scale(self) -> None:
        self.scale += 1
        self.prefix += self.tokens
        self.layers_done.clear()
        self.exit_mask = self._left_over = None

    def layer_done(self, step: Step, kept: Tensor | None, exits: bool) -> None:
        """``kept`` [samples, K] or None for all; under ``exits`` the other tokens' codes are to be zeroed.

        A token that any layer left out leaves the scale, though Global layers compute it.
        """
        if exits and kept is not None and kept is not self._left_over:
            mask = kept.new_zeros(step.samples, step.tokens).scatter(1, kept, 1)
            self.exit_mask = mask if self.exit_mask is None else self.exit_mask * mask
            self._left_over = kept
        self.layers_done.add(step.layer)
        self.kept.setdefault(step.scale, []).append((step.tokens, kept))

    def shares_of_layers(self) -> dict[int, Tensor]:
        """Per scale, [samples, N]: the share of layers that computed each token, where any left one out."""
        shares: dict[int, Tensor] = {}
        for scale, calls in self.kept.items():
            known = [kept for _, kept in calls if kept is not None]
            if not known:
                continue
            share = torch.zeros(known[0].shape[0], calls[0][0], device=known[0].device)
            for _, kept in calls:
                share += 1.0 if kept is None else torch.zeros_like(share).scatter(1, kept, 1.0)
            shares[scale] = share / len(calls)
        return shares

    @property
    def scale_is_done(self) -> bool:
        """Whether all layers of the running scale have run; in the first scale, all that are known."""
        return len(self.layers_done) == len(self.layers)

    @property
    def runs_both_branches(self) -> bool:
        """Whether the block call that runs has unconditional rows, and nothing was said against leaving them
        out."""
        return self.rows_per_sample == 2 and not self.halving and self.refused_at != self.scale

    @property
    def next_scale_is_due(self) -> bool:
        """Whether the next block call is no more of the running scale, as far as that can be known."""
        # Which layers there are is known behind the first scale only; codes are looked up behind its blocks.
        return self.scale_is_done and (self.scale > 0 or self.codes_of == 0)

    def tokens_of_scales(self) -> tuple[int, ...]:
        """N of each scale that ran, or was left out."""
        return tuple(calls[0][0] for _, calls in sorted(self.kept.items()))

    def between_blocks_and_codes(self) -> bool:
        """Whether all layers of the running scale have run, and its codes are not there yet."""
        return self.scale_is_done and not self.finished and self.codes_of != self.scale

    def has_codes(self, shape: Size) -> bool:
        """Whether codes of this shape are the running scale's; they tell how many rows belong to a sample."""
        if self.finished or len(shape) != 2 or shape[1] != self.tokens:
            return False
        per_sample, rest = divmod(self.rows, max(shape[0], 1))
        if not self.layers_done or rest or not 1 <= per_sample <= _MOST_GUIDANCE_ROWS:
            return False
        self.sees_codes = True
        if self.rows_per_sample is None:
            self.rows_per_sample = per_sample
        return True

    def first_codes(self) -> bool:
        """Whether codes of this scale are looked up for the first time; said once."""
        first = self.codes_of != self.scale
        self.codes_of = self.scale
        return first

    def skip(self, scale: int, tokens: int) -> None:
        """A later scale is not run: no layer keeps any token of it."""
        samples = self.rows // (self.rows_per_sample or 1)
        nothing = torch.zeros(samples, 0, dtype=torch.int64, device=self.device)
        self.kept[scale] = [(tokens, nothing)] * len(self.layers)

    def take_exit_mask(self, shape: Size) -> Tensor | None:
        """The mask [samples, N] of this scale, once: it is gone afterwards."""
        mask = self.exit_mask
        if mask is None or mask.shape != shape:
            return None
        self.exit_mask = None
        return mask
