"""From logits to codes: guidance, and sampling that is the same alone and in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NOISE_EPS = 1e-7  # keeps both logarithms of the Gumbel noise finite


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: ``[2B, N, V]``, the conditional rows first -> ``[B, N, V]``."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + (conditional - unconditional) * guidance


class Sampler:
    """Draws codes, with one random stream per picture.

    Picture ``i`` of a batch uses its own generator, seeded by ``seeds[i]``, and so gets the noise that it
    gets alone. The generators live on the CPU, so that every device draws the same.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_k: int | None) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature
        self.top_k = top_k

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits ``[B, N, V]`` -> codes ``[B, N]``, sampled from the ``top_k`` best by the Gumbel trick."""
        if self.top_k is None or self.top_k >= logits.shape[-1]:
            return (logits / self.temperature + self._gumbel(logits)).argmax(-1)
        best, index = logits.topk(self.top_k, dim=-1)
        chosen = (best / self.temperature + self._gumbel(best)).argmax(-1, keepdim=True)
        return index.gather(-1, chosen).squeeze(-1)

    def _gumbel(self, like: Tensor) -> Tensor:
        """Gumbel noise ``[B, N, K]`` float32 on the device of ``like``."""
        uniform = torch.stack(
            [torch.rand(like.shape[1:], generator=generator) for generator in self.generators]
        )
        return -(-uniform.to(like.device).clamp(NOISE_EPS, 1 - NOISE_EPS).log()).log()
