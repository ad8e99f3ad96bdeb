"""How wrong the network's answers are."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .net import Maps
from .targets import Targets

OFFSET_WEIGHT = 0.5
SIZE_WEIGHT = 0.5
COLOURS_WEIGHT = 2.0


def losses_of(maps: Maps, targets: Targets) -> dict[str, Tensor]:
    """The parts of the loss, each a mean; what is asked of objects counts where one must be reported."""
    maps = Maps(*(value.float() for value in maps))
    inside = targets.inside.float()
    cells = inside.sum().clamp(min=1)
    judged = inside + targets.outside.float()
    present = F.binary_cross_entropy_with_logits(
        maps.objectness[:, 0], inside, weight=judged, reduction="sum"
    )
    kinds = F.cross_entropy(maps.kinds, targets.kinds, reduction="none")
    hues = F.cross_entropy(maps.hues, targets.hues, reduction="none")
    offsets = F.smooth_l1_loss(maps.offsets, targets.offsets, reduction="none", beta=0.1).sum(1)
    sizes = F.smooth_l1_loss(maps.sizes, targets.sizes, reduction="none", beta=0.1).sum(1)
    return {
        "objects": present / cells,
        "kinds": (kinds * inside).sum() / cells,
        "hues": (hues * inside).sum() / cells,
        "offsets": OFFSET_WEIGHT * (offsets * inside).sum() / cells,
        "sizes": SIZE_WEIGHT * (sizes * inside).sum() / cells,
        "mask": F.binary_cross_entropy_with_logits(maps.mask, targets.mask.float()),
        "styles": F.cross_entropy(maps.styles, targets.styles),
        "colours": COLOURS_WEIGHT * F.binary_cross_entropy_with_logits(maps.colours, targets.colours),
    }
