"""Muon for the hidden matrices, and the two learning-rate schedules."""

from __future__ import annotations

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
        params: two-dimensional parameters, or groups of them. A group may have ``stacked=True``: its weights
            are square matrices on top of each other, each to be orthogonalised on its own.
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
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
        means = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
            means.append(mean.lerp_(gradient, 1 - group["momentum"]))
        direction = gradients.lerp(torch.stack(means), group["momentum"])
        rows, columns = parameters[0].shape
        height = columns if group["stacked"] else rows
        update = orthogonalise(direction.reshape(-1, height, columns)).to(direction.dtype).view_as(direction)
        scale = group["lr"] * max(1.0, height / columns) ** 0.5
        for parameter, change in zip(parameters, update, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=scale)


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


def linear_decay(step: int, steps: int, warmup: int = 60) -> float:
    """Factor of the learning rate: warm up, hold until half-way, fall linearly to a hundredth."""
    progress = step / steps
    return min(1.0, (step + 1) / warmup) * (1.0 if progress < 0.5 else max(0.01, (1 - progress) / 0.5))


def cosine_decay(step: int, steps: int, warmup: int = 200) -> float:
    """Factor of the learning rate: warm up, hold for two fifths, fall as a half cosine to a fiftieth."""
    progress = max(0.0, (step / steps - 0.4) / 0.6)
    return min(1.0, (step + 1) / warmup) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
