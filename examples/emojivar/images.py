"""Pictures between tensors and PNG files, without NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GAP = 4  # white pixels between the pictures of a grid


def from_pil(image: Image.Image) -> Tensor:
    """``[C, H, W]`` uint8, one channel per band."""
    width, height = image.size
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, -1).permute(2, 0, 1)


def to_pil(pixels: Tensor) -> Image.Image:
    """``[1 | 3 | 4, H, W]`` uint8 -> a picture of mode L, RGB or RGBA."""
    channels, height, width = pixels.shape
    flat = pixels.permute(1, 2, 0).flatten().tolist()
    return Image.frombytes(MODES[channels], (width, height), bytes(flat))


def save_png(images: Tensor | Sequence[Tensor], path: str | Path, columns: int = 5) -> None:
    """Write pictures ``[B, 3, H, W]`` in [0, 1] as one grid, making the folder where needed."""
    pixels = [(image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8) for image in images]
    columns = min(columns, len(pixels))
    blank = torch.full_like(pixels[0], 255)
    pixels += [blank] * (-len(pixels) % columns)
    padded = [F.pad(image, (0, GAP, 0, GAP), value=255) for image in pixels]
    rows = [torch.cat(padded[i : i + columns], dim=2) for i in range(0, len(padded), columns)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(torch.cat(rows, dim=1)[:, :-GAP, :-GAP]).save(path)
