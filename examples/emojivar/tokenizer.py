"""Multi-scale residual tokenizer: a picture as ten grids of codes, coarse to fine.

The running reconstruction ``f_hat`` lives on the finest grid. Scale ``s`` quantises what is still missing,
averaged down to its own grid; its codes are resized up, refined by a convolution and added to ``f_hat``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .autoencoder import DOWNSAMPLING, make_decoder, make_encoder
from .layers import at_least_float32

REFINE_CONVS = 4
LATENT_VARIANCE_EPS = 1e-5


class Tokens(NamedTuple):
    """A quantised picture, with what teacher forcing needs."""

    codes: Tensor  # [B, L] int64, the best codes of all scales in generation order
    inputs: Tensor  # [B, L - 1, C], the transformer's input features for every scale but the first
    f_hat: Tensor  # [B, C, G, G], the reconstructed features


def down_matrix(grid: int, side: int) -> Tensor:
    """``[side, grid]``: area averaging along one axis."""
    return F.adaptive_avg_pool1d(torch.eye(grid)[None], side)[0].t().contiguous()


def up_matrix(grid: int, side: int) -> Tensor:
    """``[grid, side]``: bicubic interpolation along one axis."""
    eye = torch.eye(side)
    if side == grid:
        return eye
    return F.interpolate(eye[None, None], size=(grid, side), mode="bicubic", align_corners=False)[0, 0]


class Tokenizer(nn.Module):
    """Encoder, multi-scale residual quantiser and decoder."""

    sigma: Tensor
    latent_mean: Tensor
    latent_var: Tensor

    def __init__(
        self,
        patch_nums: Sequence[int],
        codes: int = 1024,
        code_width: int = 16,
        widths: tuple[int, int, int] = (64, 128, 160),
    ) -> None:
        super().__init__()
        self.patch_nums = tuple(patch_nums)
        self.grid = self.patch_nums[-1]
        self.image_size = self.grid * DOWNSAMPLING
        self.code_width = code_width
        self.encoder = make_encoder(code_width, widths)
        self.decoder = make_decoder(code_width, widths)
        self.codebook = nn.Embedding(codes, code_width)
        self.refine = nn.ModuleList(
            nn.Conv2d(code_width, code_width, 3, padding=1) for _ in range(REFINE_CONVS)
        )
        for conv in self.refine:
            nn.init.zeros_(conv.bias)
            with torch.no_grad():
                conv.weight.mul_(0.3)
        self.register_buffer("sigma", torch.ones(len(self.patch_nums)))
        self.register_buffer("latent_mean", torch.zeros(code_width))
        self.register_buffer("latent_var", torch.ones(code_width))
        for scale, side in enumerate(self.patch_nums):
            self.register_buffer(f"down_{scale}", down_matrix(self.grid, side), persistent=False)
            self.register_buffer(f"up_{scale}", up_matrix(self.grid, side), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures ``[B, 3, 8G, 8G]`` in [0, 1] -> whitened features ``[B, C, G, G]``."""
        dtype = next(self.encoder.parameters()).dtype
        return self.whiten(at_least_float32(self.encoder((images * 2 - 1).to(dtype))))

    def whiten(self, features: Tensor) -> Tensor:
        """Normalise encoder features ``[B, C, G, G]`` by their running statistics.

        Statistics of the batch would let one picture's colours leak into another's code.
        """
        scale = torch.rsqrt(self.latent_var + LATENT_VARIANCE_EPS)
        return (features - self.latent_mean[:, None, None]) * scale[:, None, None]

    def decode(self, f_hat: Tensor) -> Tensor:
        """Features ``[B, C, G, G]`` -> pictures ``[B, 3, 8G, 8G]`` in [0, 1], at least float32."""
        dtype = next(self.decoder.parameters()).dtype
        return at_least_float32(self.decoder(f_hat.to(dtype))).clamp(-1, 1) * 0.5 + 0.5

    def empty_features(self, batch: int) -> Tensor:
        """An ``f_hat`` of zeros ``[batch, C, G, G]``, at least float32."""
        return at_least_float32(self.codebook.weight).new_zeros(batch, self.code_width, self.grid, self.grid)

    def downscale(self, features: Tensor, scale: int) -> Tensor:
        """``[B, C, G, G]`` -> tokens of a scale ``[B, N, C]``, by area averaging."""
        matrix = self.get_buffer(f"down_{scale}").to(features.dtype)
        return (matrix @ features @ matrix.t()).flatten(2).transpose(1, 2)

    def code_features(self, idx: Tensor, scale: int) -> Tensor:
        """What the codes ``idx`` ``[B, N]`` of a scale add to ``f_hat``: ``[B, C, G, G]``."""
        side = self.patch_nums[scale]
        z = at_least_float32(self.codebook(idx)) * self.sigma[scale]
        z = z.transpose(1, 2).unflatten(2, (side, side))
        matrix = self.get_buffer(f"up_{scale}").to(z.dtype)
        h = matrix @ z @ matrix.t()
        conv = self.refine[self.refine_index(scale)]
        return 0.5 * h + 0.5 * conv(h.to(conv.weight.dtype))

    def refine_index(self, scale: int) -> int:
        """Neighbouring scales share a refining convolution."""
        last = len(self.patch_nums) - 1
        return min(scale * REFINE_CONVS // last, REFINE_CONVS - 1)

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest code for each of ``[..., C]`` (already divided by the scale's sigma)."""
        codebook = at_least_float32(self.codebook.weight)
        return (2 * z @ codebook.t() - codebook.square().sum(-1)).argmax(-1)

    def quantize(
        self,
        features: Tensor,
        perturb: Tensor | None = None,
        perturb_noise: float = 0.7,
        generator: torch.Generator | None = None,
        scales: int | None = None,
    ) -> Tokens:
        """Codes of whitened features ``[B, C, G, G]``, scale by scale.

        Args:
            features: from :meth:`encode`.
            perturb: ``[B]``, the share of codes of each picture to replace by a near miss before going on.
                The targets stay the best codes, so a model trained on them learns to repair mistakes.
            perturb_noise: how far a near miss is drawn, in units of the scale's sigma.
            generator: of the near misses, on the device of ``features``.
            scales: how many, coarse to fine; by default all.
        """
        scales = len(self.patch_nums) if scales is None else scales
        f_hat = torch.zeros_like(features)
        codes, inputs = [], []
        for scale in range(scales):
            z = self.downscale(features - f_hat, scale) / self.sigma[scale]
            best = used = self.nearest(z)
            if perturb is not None:
                noise = torch.randn(z.shape, device=z.device, dtype=z.dtype, generator=generator)
                swap = torch.rand(best.shape, device=z.device, generator=generator) < perturb[:, None]
                used = torch.where(swap, self.nearest(z + perturb_noise * noise), best)
            codes.append(best)
            f_hat = f_hat + self.code_features(used, scale)
            if scale + 1 < scales:
                inputs.append(self.downscale(f_hat, scale + 1))
        return Tokens(torch.cat(codes, 1), torch.cat(inputs, 1), f_hat)
