"""A text-to-image generator in Infinity's manner: chunks of blocks, codes of bits, packed prompts.

What it has that the other toys have not: the model calls the blocks of its chunks itself, where a scale's
positions begin is a NumPy sum of plain numbers, a table of positions is kept in a dictionary and put back
there, prompts of different lengths are packed, the tokenizer comes as an argument, and no schedule is stated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.packed_attention import attend_packed
from tests.toy_generators import QUERY_SCALE, CachedAttention

BITS = 6


class PositionedAttention(CachedAttention):
    """Positions of a scale are a part of one table of all scales."""

    def place(self, x: Tensor, sides: Sequence[int], tables: dict[str, Tensor], scale: int) -> Tensor:
        begin = np.sum([side * side for side in sides[:scale]]) if scale else 0
        tables["all"] = tables["all"].to(x.device)
        assert begin + x.shape[1] <= tables["all"].shape[1]
        return x + tables["all"][:, begin : begin + x.shape[1]]


class PackedBlock(nn.Module):
    """Self-attention, attention to packed prompts, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn = PositionedAttention(width, heads)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        prompts: tuple[Tensor, Tensor, int],
        sides: Sequence[int],
        tables: dict[str, Tensor],
        scale: int,
    ) -> Tensor:
        words, begins, longest = prompts
        x = x + self.attn(self.attn.place(self.norm(x), sides, tables, scale))
        keys, values = self.key_value(words).unflatten(-1, (2, self.heads, -1)).unbind(1)
        queries = self.query(x).unflatten(-1, (self.heads, -1)) * QUERY_SCALE
        x = x + attend_packed(queries, keys, values, begins, longest)
        return x + self.ffn(self.norm(x))


class Chunk(nn.Module):
    """A few blocks."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)


class BitTokenizer(nn.Module):
    """Bits [B, H, W, D] -> vectors [B, D, H, W] of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.project_out = nn.Identity()

    def vectors(self, bits: Tensor) -> Tensor:
        vectors: Tensor = self.project_out(F.normalize(bits * 2.0 - 1.0, dim=-1))
        return vectors.permute(0, 3, 1, 2)


class BitVAR(nn.Module):
    """Words of packed prompts -> features."""

    def __init__(self, width: int = 32, heads: int = 4, sides: Sequence[int] = (1, 2, 3, 4, 6)) -> None:
        super().__init__()
        self.width, self.sides = width, list(sides)
        self.chunks = nn.ModuleList(Chunk([PackedBlock(width, heads)]) for _ in range(2))
        self.embed, self.head = nn.Linear(BITS, width), nn.Linear(width, 2 * BITS)
        self.tables = {"all": torch.randn(1, sum(side * side for side in sides), width)}

    @torch.no_grad()
    def paint(self, tokenizer: BitTokenizer, words: Tensor, lengths: Sequence[int], cfg: float) -> Tensor:
        """Words [T, C] of ``lengths`` words a sample -> features [B, D, G, G]; words of 0 are no prompt."""
        samples, grid = len(lengths), self.sides[-1]
        begins = torch.tensor([0, *lengths, *lengths]).cumsum(0).to(torch.int32)
        prompts = (torch.cat((words, torch.zeros_like(words))), begins, max(lengths))
        features = words.new_zeros(samples, BITS, grid, grid)
        x = words.mean(0).expand(2 * samples, 1, -1)
        blocks = [block for chunk in self.chunks for block in chunk.module]
        for block in blocks:
            block.attn.kv_caching(True)
        for scale, side in enumerate(self.sides):
            for block in blocks:
                x = block(x, prompts, self.sides, self.tables, scale)
            logits = self.head(x)
            logits = cfg * logits[:samples] + (1 - cfg) * logits[samples:]
            bits = logits.unflatten(-1, (BITS, 2)).argmax(-1).unflatten(1, (side, side))
            features = features + F.interpolate(tokenizer.vectors(bits), size=(grid, grid))
            if scale + 1 < len(self.sides):
                small = F.adaptive_avg_pool2d(features, self.sides[scale + 1]).flatten(2).transpose(1, 2)
                x = self.embed(small).repeat(2, 1, 1)
        for block in blocks:
            block.attn.kv_caching(False)
        return features
