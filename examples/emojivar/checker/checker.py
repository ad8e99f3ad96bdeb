"""The detector in use: pictures in, objects, features and sprites out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from examples.emojivar.scenes import CANVAS

from .decode import LEAST_SCORE, Reading, decode
from .net import CheckerNet, Maps

SIDE = int(CANVAS)
AT_ONCE = 32  # pictures in one pass, which bounds the memory


class Checker:
    """A detector of the emoji in pictures, trained on true scenes.

    All methods take pictures ``[B, 3, 256, 256]`` floating-point in [0, 1] on any device, and raise a
    ValueError for anything else. Results lie on that device.

    Args:
        net: with its weights; is put into eval mode, in float32.
        fingerprint: digest of the weights, for records of what was measured with them.
    """

    def __init__(self, net: CheckerNet, fingerprint: str) -> None:
        self.net = net.eval().requires_grad_(False).float()
        self.fingerprint = fingerprint

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return next(self.net.parameters()).device

    def detect(self, images: Tensor, least_score: float = LEAST_SCORE) -> list[Reading]:
        """Objects above ``least_score``, the most certain first, and the background, per picture."""
        return [reading for maps in self._maps(images) for reading in decode(maps, least_score)]

    def features(self, images: Tensor) -> Tensor:
        """``[B, F]`` float32: the last layer's mean over the picture, for distances between sets."""
        parts = [maps.features for maps in self._maps(images)]
        return torch.cat(parts).to(images.device) if parts else images.new_zeros(0, self.net.feature_width)

    def foreground(self, images: Tensor) -> Tensor:
        """``[B, 256, 256]`` bool: the pixels that a sprite covers by at least half."""
        parts = [F.interpolate(maps.mask, size=(SIDE, SIDE), mode="bilinear") for maps in self._maps(images)]
        masks = torch.cat(parts)[:, 0] > 0 if parts else images.new_zeros(0, SIDE, SIDE, dtype=torch.bool)
        return masks.to(images.device)

    @torch.inference_mode()
    def _maps(self, images: Tensor) -> list[Maps]:
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1:] != (3, SIDE, SIDE) or not images.is_floating_point():
            raise ValueError(
                f"the checker requires floating-point pictures [B, 3, {SIDE}, {SIDE}] in [0, 1], got "
                f"{images.dtype} {list(shape)}; resize or convert them"
            )
        return [self.net(part.to(self.device, torch.float32)) for part in images.split(AT_ONCE) if len(part)]
