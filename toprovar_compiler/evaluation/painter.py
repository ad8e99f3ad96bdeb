"""One model under one policy: pictures, and what they took."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

import toprovar_compiler
from toprovar_compiler.api import policy_of
from toprovar_compiler.cli_model import paint
from toprovar_compiler.errors import EvaluationError
from toprovar_compiler.evaluation.units import Batch
from toprovar_compiler.evaluation.variants import Variant
from toprovar_compiler.policies.oracle import OraclePolicy, edge_maps, set_maps


def under_policy(model: nn.Module, variant: Variant) -> nn.Module:
    """``model`` compiled with that policy. All variants of a model share its compiled graphs, and the model
    itself stays eager.

    Raises:
        OptionError: an option does not fit the model.
        UnsupportedModelError: the model has no repeated blocks.
    """
    made = torch.compile(model, backend="toprovar", options={**variant.options, "policy": variant.policy})
    return cast(nn.Module, made)


def show_dense(model: nn.Module, variant: Variant, dense: Tensor) -> None:
    """Let the oracle see the dense pictures [B, 3, H, W] of what it paints next; others must not."""
    if variant.policy == OraclePolicy.name:
        set_maps(model, edge_maps(dense))


class Painter:
    """Paints batches.

    Args:
        lesson: what a policy that learns from its first generation learns from, whichever batch this
            process paints first.
    """

    def __init__(self, model: nn.Module, variant: Variant, lesson: Batch) -> None:
        self.variant, self.lesson = variant, lesson
        self.model = under_policy(model, variant)
        self.device = next(model.parameters()).device

    def paint(self, batch: Batch, dense: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """Pictures [B, 3, H, W] uint8 of the batch's B units, and the counts of what was computed.

        Args:
            batch: what to paint.
            dense: the dense pictures [B, 3, H, W] float of the same units, for a policy that is shown them.

        Raises:
            EvaluationError: a picture is not finite.
            UnsupportedModelError: the model gives no pictures.
            ValueError: the model refuses a prompt.
        """
        if policy_of(self.model).learning:
            with torch.no_grad():
                paint(self.model, self.lesson.texts, self.lesson.seed)
        toprovar_compiler.reset()
        if dense is not None:
            filled = torch.cat([dense, dense[-1:].expand(batch.size - len(dense), -1, -1, -1)])
            show_dense(self.model, self.variant, filled)
        with torch.no_grad():
            pictures = paint(self.model, batch.texts, batch.seed)[: len(batch.units)].detach().float()
        if not bool(pictures.isfinite().all()):
            raise EvaluationError(
                f"policy {self.variant.name!r} requires finite pictures, got NaN or infinity in batch "
                f"{batch.number} (first prompt {batch.units[0].text!r}); try another --dtype"
            )
        counts = toprovar_compiler.summary(self.model).to_dict()
        work = ("tokens_total", "tokens_computed", "flops_total", "flops_computed")
        kept = (*work, "recompiles", "fallbacks", "error_bound")
        return to_bytes(pictures), {name: counts[name] for name in kept}


def to_bytes(pictures: Tensor) -> Tensor:
    """8-bit colours, as stored in PNG: every metric is of these, whether painted now or read back."""
    return pictures.clamp(0, 1).mul(255).round().to(torch.uint8)


def to_floats(pictures: Tensor) -> Tensor:
    """float32 in [0, 1] of 8-bit colours."""
    return pictures.float() / 255
