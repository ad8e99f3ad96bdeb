"""The detector's network: convolutions down to stride 32 and back up to stride 8, and a head per question."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.emojivar.vocabulary import BACKGROUND_COLOURS, HUES, KINDS, STYLES

STRIDE = 8  # pixels a side of a cell, in which an object's centre is looked for
MASK_STRIDE = 2  # pixels a side of a cell of the sprites' mask
MASK_UPSCALE = 2  # the mask is read from features of stride 4
LEAST_VARIANCE = 1e-4  # keeps the slope of the root finite
HUE_CLASSES = 1 + len(HUES)  # the first: a thing's own colours
RARE = -4.0  # initial logit of an object being at a cell: one cell in fifty


@dataclass(frozen=True)
class NetConfig:
    """Channels at strides 2, 4, 8, 16, 32, and of the trunk at stride 8 that the heads read."""

    widths: tuple[int, int, int, int, int] = (24, 32, 64, 96, 128)
    trunk: int = 96

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetConfig:
        """The inverse of :meth:`to_json`; TypeError for unknown or missing names."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


SMOKE = NetConfig(widths=(8, 8, 16, 16, 16), trunk=16)


class Maps(NamedTuple):
    """What the network says; ``G`` is an eighth of a picture's side, ``M`` a half of it."""

    objectness: Tensor  # [B, 1, G, G], logits
    offsets: Tensor  # [B, 2, G, G], from a cell's middle to the object's centre, x and y, in cells
    sizes: Tensor  # [B, 2, G, G], logarithms of width and height in cells
    kinds: Tensor  # [B, 64, G, G], logits
    hues: Tensor  # [B, 6, G, G], logits
    mask: Tensor  # [B, 1, M, M], logits of belonging to a sprite
    styles: Tensor  # [B, 3], logits
    colours: Tensor  # [B, 8], logits of each background colour being there
    features: Tensor  # [B, F], pooled


class Conv(nn.Sequential):
    """A convolution, normalised over the batch, and its activation."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1, dilation: int = 1) -> None:
        padding = (size - 1) // 2 * dilation
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Bottleneck(nn.Module):
    """A residual block that looks around in half its channels."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        narrow = width // 2
        self.body = nn.Sequential(
            Conv(width, narrow, 1),
            Conv(narrow, narrow, 3, dilation=dilation),
            nn.Conv2d(narrow, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` in and out."""
        return F.relu(x + self.body(x))


class BackgroundHead(nn.Module):
    """Style and colours of what lies between the sprites, from mean, deviation and maximum over it."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.local = Conv(inputs, hidden, 1)
        self.join = nn.Sequential(nn.Linear(3 * hidden, hidden), nn.ReLU(inplace=True))
        self.styles = nn.Linear(hidden, len(STYLES))
        self.colours = nn.Linear(hidden, len(BACKGROUND_COLOURS))

    def forward(self, x: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, 3]`` and ``[B, 8]`` of features ``[B, C, G, G]`` and weights ``[B, 1, G, G]``."""
        local = self.local(x).float()
        weights = background / background.sum((2, 3), keepdim=True).clamp(min=1.0)
        mean = (local * weights).sum((2, 3))
        variance = ((local - mean[:, :, None, None]).square() * weights).sum((2, 3))
        highest = (local * background).amax((2, 3))
        joined = self.join(torch.cat([mean, (variance + LEAST_VARIANCE).sqrt(), highest], 1))
        return self.styles(joined), self.colours(joined)


class CheckerNet(nn.Module):
    """Everything that is asked of a picture, in one pass; see :class:`Maps`."""

    def __init__(self, config: NetConfig | None = None) -> None:
        super().__init__()
        self.config = config or NetConfig()
        two, four, eight, sixteen, thirty_two = self.config.widths
        trunk = self.config.trunk
        self.stride_4 = nn.Sequential(Conv(3, two, stride=2), Conv(two, four, stride=2), Bottleneck(four))
        self.stride_8 = nn.Sequential(Conv(four, eight, stride=2), Bottleneck(eight), Bottleneck(eight))
        self.stride_16 = nn.Sequential(
            Conv(eight, sixteen, stride=2), *(Bottleneck(sixteen) for _ in range(3))
        )
        self.stride_32 = nn.Sequential(
            Conv(sixteen, thirty_two, size=2, stride=2),
            Bottleneck(thirty_two),
            Bottleneck(thirty_two, dilation=2),
        )
        self.up_16 = Conv(thirty_two, sixteen, 1)
        self.joint_16 = Bottleneck(sixteen)
        self.up_8, self.skip_8 = Conv(sixteen, trunk, 1), Conv(eight, trunk, 1)
        self.trunk = nn.Sequential(Bottleneck(trunk), Bottleneck(trunk))
        self.up_4, self.skip_4 = Conv(trunk, four, 1), Conv(four, four, 1)
        self.mask = nn.Sequential(Conv(four, four, 3), nn.Conv2d(four, MASK_UPSCALE**2, 1))
        self.what = Conv(trunk, trunk, 1)
        self.kinds = nn.Conv2d(trunk, len(KINDS), 1)
        self.hues = nn.Conv2d(trunk, HUE_CLASSES, 1)
        self.place = nn.Conv2d(trunk, 1 + 2 + 2, 1)  # objectness, offset, size
        self.background = BackgroundHead(eight, trunk)
        nn.init.zeros_(self.place.bias)
        nn.init.constant_(self.place.bias[0], RARE)

    @property
    def heads(self) -> list[nn.Module]:
        """The layers that give the answers."""
        return [
            self.mask[-1],
            self.kinds,
            self.hues,
            self.place,
            self.background.styles,
            self.background.colours,
        ]

    @property
    def feature_width(self) -> int:
        """Length of a picture's feature vector."""
        return self.config.trunk

    def forward(self, images: Tensor) -> Maps:
        """Maps of pictures ``[B, 3, S, S]`` in [0, 1], S a multiple of 32."""
        fine = self.stride_4(images * 2 - 1)
        middle = self.stride_8(fine)
        coarse = self.stride_16(middle)
        coarse = self.joint_16(coarse + _double(self.up_16(self.stride_32(coarse))))
        trunk = self.trunk(self.skip_8(middle) + _double(self.up_8(coarse)))
        mask = F.pixel_shuffle(self.mask(self.skip_4(fine) + _double(self.up_4(trunk))), MASK_UPSCALE)
        # where the mask says "sprite", the background head must not look; nor must its loss move the mask
        background = 1 - F.avg_pool2d(mask.detach().sigmoid(), STRIDE // MASK_STRIDE)
        styles, colours = self.background(middle, background)
        what = self.what(trunk)
        place = self.place(trunk)
        return Maps(
            objectness=place[:, :1],
            offsets=place[:, 1:3],
            sizes=place[:, 3:],
            kinds=self.kinds(what),
            hues=self.hues(what),
            mask=mask,
            styles=styles,
            colours=colours,
            features=trunk.mean((2, 3)),
        )


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
