"""Slight damage to pictures, as decoders do it: blur, sharpening, blocks, noise and shifted colours."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SPARED = 0.25  # share of pictures that stay as they are
GAIN = 0.05  # most change of a channel's contrast
SHIFT = 0.03  # most change of a channel's brightness
BLUR = (-0.5, 1.0)  # strongest sharpening and strongest blur, as shares of the blurred picture
NOISE = 0.03  # largest standard deviation
BLOCK = 8  # pixels a side, as in JPEG
BLOCK_SHARE = 0.5  # share of pictures that get blocks
BLOCK_STEP = 0.04  # coarsest quantisation of a block's lowest frequency; higher ones are coarser
LEAST_STEP = 1e-6
KERNEL = (1.0, 4.0, 6.0, 4.0, 1.0)


@torch.no_grad()
def degrade(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Pictures ``[B, 3, S, S]`` in [0, 1], S a multiple of 8, each damaged in its own way.

    Args:
        images: true scenes.
        generator: on the device of the pictures; by default that device's own.
    """

    def draw(low: float, high: float, *channels: int) -> Tensor:
        shape = (len(images), *(channels or (1,)), 1, 1)
        share = torch.rand(shape, generator=generator, device=images.device, dtype=images.dtype)
        return low + (high - low) * share

    spared = draw(0, 1) < SPARED
    damaged = images * draw(1 - GAIN, 1 + GAIN, 3) + draw(-SHIFT, SHIFT, 3)
    damaged = torch.lerp(damaged, blur(damaged), draw(*BLUR))
    white = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    damaged = damaged + draw(0, NOISE) * white
    blocky = draw(0, 1) < BLOCK_SHARE
    damaged = torch.where(blocky, quantise_blocks(damaged, draw(0, BLOCK_STEP)), damaged)
    return torch.where(spared, images, damaged.clamp(0, 1))


def blur(images: Tensor) -> Tensor:
    """A binomial filter of five pixels over ``[B, C, H, W]``, with the edges repeated."""
    taps = images.new_tensor(KERNEL) / sum(KERNEL)
    channels = images.shape[1]
    across = taps.expand(channels, 1, 1, -1)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, across, groups=channels), across.mT, groups=channels)


def quantise_blocks(images: Tensor, step: Tensor) -> Tensor:
    """Round the cosine transform of each block of 8x8 pixels.

    Args:
        images: ``[B, C, H, W]``, H and W multiples of 8.
        step: ``[B, 1, 1, 1]``, of the lowest frequency; the step of frequency (u, v) is 1 + u + v times that.
    """
    height = images.shape[-2] // BLOCK
    frequency = torch.arange(BLOCK, device=images.device, dtype=images.dtype)
    waves = torch.cos(math.pi / BLOCK * (frequency + 0.5) * frequency[:, None]) * math.sqrt(2 / BLOCK)
    waves[0] *= math.sqrt(0.5)
    basis = torch.kron(waves, waves)  # [64, 64]: rows are the waves of a block, flattened
    steps = step.clamp(min=LEAST_STEP) * (1 + frequency + frequency[:, None]).flatten()
    blocks = images.unflatten(3, (-1, BLOCK)).unflatten(2, (height, BLOCK)).transpose(3, 4).flatten(4)
    coefficients = (blocks @ basis.mT) / steps[:, :, None]  # [B, C, H / 8, W / 8, 64]
    restored = (coefficients.round() * steps[:, :, None]) @ basis
    return restored.unflatten(4, (BLOCK, BLOCK)).transpose(3, 4).flatten(4).flatten(2, 3)
