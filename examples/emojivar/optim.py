"""Muon for the hidden matrices, averaged weights, and the learning-rate schedules."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
STACKED = ("qkv", "key_value")  # layers whose weight is several square matrices on top of each other


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of ``[B, R, C]``, roughly, in bfloat16 (quintic Newton-Schulz)."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum whose update is orthogonalised, for matrices (Keller Jordan, 2024).

    Args:
        params: matrices, or convolutions ``[out, in, h, w]`` as matrices ``[out, in * h * w]``; or groups of
            them. A group may have ``stacked=True``: its weights are square matrices on top of each other,
            each to be orthogonalised on its own.
        lr: step length; an update has a spectral norm near one.
        momentum: of the running mean of gradients (Nesterov).
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, object]],
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "stacked": False}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; parameters of equal shape are orthogonalised together."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], group: dict[str, float]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = [self.state[p].setdefault("mean", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        direction = torch.stack(torch._foreach_lerp(gradients, means, group["momentum"]))
        rows, columns = parameters[0].flatten(1).shape
        height = columns if group["stacked"] else rows
        update = orthogonalise(direction.reshape(-1, height, columns)).to(direction.dtype)
        scale = group["lr"] * max(1.0, height / columns) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(update.reshape(direction.shape).unbind()), alpha=-scale)


class MovingAverage(nn.Module):
    """A copy of a model that follows its parameters slowly; ``model`` is the copy.

    Args:
        model: is copied.
        decay: share of the average that a step keeps; less in the first steps, which have little to keep.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the parameters of ``model``, after its step number ``step``, counted from 0."""
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(plain matrices, stacked matrices, all others) of a model; the first two are for Muon.

    Only linear layers inside repeated blocks count as hidden matrices.
    """
    plain: list[nn.Parameter] = []
    stacked: list[nn.Parameter] = []
    for name, module in model.named_modules():
        if "blocks." in name and isinstance(module, nn.Linear):
            (stacked if name.endswith(STACKED) else plain).append(module.weight)
    taken = {id(parameter) for parameter in plain + stacked}
    return plain, stacked, [p for p in model.parameters() if id(p) not in taken]


def warm_up(step: int, steps: int) -> float:
    """Factor of the learning rate: rises linearly over the first ``steps`` steps."""
    return min(1.0, (step + 1) / steps)


def linear_decay(progress: float, hold: float = 0.5) -> float:
    """Factor of the learning rate at a share of a run: hold, then fall linearly to a hundredth."""
    return max(0.01, min(1.0, (1 - progress) / (1 - hold)))


def cosine_decay(progress: float, hold: float = 0.4) -> float:
    """Factor of the learning rate at a share of a run: hold, then fall as a half cosine to a fiftieth."""
    fallen = max(0.0, (progress - hold) / (1 - hold))
    return max(0.02, 0.5 * (1 + math.cos(math.pi * fallen)))
