"""How the tokenizer's codebook is learnt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tokenizer import Tokenizer

COMMITMENT = 0.25
SIGMA_MOMENTUM = 0.02
CODEBOOK_MOMENTUM = 0.01
DEAD_SHARE = 0.05  # of the mean count, below which a code is replaced
REVIVED_SHARE = 0.5
POOL = 512  # candidates per scale to replace dead codes by
REVIVE_EVERY_STEP_UNTIL, REVIVE_EVERY, REVIVE_PROGRESS = 400, 10, 0.6


class CodebookTrainer(nn.Module):
    """Learns the codebook by exponential moving averages, and replaces codes that nothing uses.

    Args:
        tokenizer: owns the codebook, which is updated in place.
        fresh: whether to start the codebook and the scales' sigmas from the data of step 0.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, tokenizer: Tokenizer, fresh: bool = True) -> None:
        super().__init__()
        self.fresh = fresh
        weight = tokenizer.codebook.weight
        self.register_buffer("counts", torch.ones(len(weight), device=weight.device))
        self.register_buffer("sums", weight.detach().clone())

    def forward(
        self, tokenizer: Tokenizer, features: Tensor, step: int, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Quantise whitened ``features`` ``[B, C, G, G]`` and update the codebook.

        Returns:
            ``f_hat`` like ``features``, and the loss of the refining convolutions and the commitment.
        """
        early = self.fresh and step < REVIVE_EVERY_STEP_UNTIL
        revive = early or (step % REVIVE_EVERY == 0 and progress < REVIVE_PROGRESS)
        f_hat, loss = torch.zeros_like(features), features.new_zeros(())
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        pool = []
        first = self.fresh and step == 0
        for scale, side in enumerate(tokenizer.patch_nums):
            with torch.no_grad():
                z = self._standardise(tokenizer, features - f_hat, scale, first)
                idx = tokenizer.nearest(z)
                weight = 1 / side  # between counting every token and counting every scale alike
                counts.index_add_(0, idx, torch.full(idx.shape, weight, device=z.device))
                sums.index_add_(0, idx, z * weight)
                pool.append(z[torch.randint(len(z), (POOL,), device=z.device)])
            f_hat = f_hat + tokenizer.code_features(idx.view(len(features), -1), scale)
            loss = (
                loss
                + F.mse_loss(f_hat, features.detach())
                + COMMITMENT * F.mse_loss(f_hat.detach(), features)
            )
        self._update(tokenizer, counts, sums, torch.cat(pool) if revive else None, first=step == 0)
        return f_hat, loss / len(tokenizer.patch_nums)

    def _standardise(self, tokenizer: Tokenizer, rest: Tensor, scale: int, first: bool) -> Tensor:
        """What a scale has to quantise, ``[B * N, C]`` in units of its sigma, which follows it."""
        z = tokenizer.downscale(rest, scale)
        size = z.square().mean().sqrt()
        sigma = tokenizer.sigma[scale]
        sigma.copy_(size if first else sigma.lerp(size, SIGMA_MOMENTUM))
        z = (z / sigma).flatten(0, 1)
        if first and scale == len(tokenizer.patch_nums) - 2:
            weight = tokenizer.codebook.weight
            start = z[torch.randint(len(z), (len(weight),), device=z.device)]
            weight.copy_(start + 0.05 * torch.randn_like(start))
        return z

    @torch.no_grad()
    def _update(
        self, tokenizer: Tokenizer, counts: Tensor, sums: Tensor, pool: Tensor | None, first: bool
    ) -> None:
        weight = tokenizer.codebook.weight
        if first:
            self.counts.fill_(counts.mean())
            self.sums.copy_(weight * self.counts[:, None])
        self.counts.lerp_(counts, CODEBOOK_MOMENTUM)
        self.sums.lerp_(sums, CODEBOOK_MOMENTUM)
        if pool is not None:
            mean = self.counts.mean()
            dead = self.counts < DEAD_SHARE * mean
            fresh = pool[torch.randint(len(pool), (len(weight),), device=pool.device)]
            self.counts.copy_(torch.where(dead, mean * REVIVED_SHARE, self.counts))
            self.sums.copy_(torch.where(dead[:, None], fresh * self.counts[:, None], self.sums))
        weight.copy_(self.sums / self.counts[:, None].clamp(min=1e-6))
