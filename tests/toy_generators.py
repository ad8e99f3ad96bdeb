"""Small VAR-style generators in plain PyTorch, which know nothing of toprovar.

They differ where public models do: how the cache is held, how the schedule is stated, whether guidance
stacks rows, where the codebook is kept, and how attention is written. Untrained, with fixed seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERY_SCALE = 6.0  # sharp enough that entropies differ clearly between tokens


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class CachedAttention(nn.Module):
    """Self-attention that grows its own cache by concatenation, as the official VAR does."""

    def __init__(self, width: int, heads: int, hand_written: bool = False) -> None:
        super().__init__()
        self.heads, self.hand_written = heads, hand_written
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.kv_caching(False)

    def kv_caching(self, enable: bool) -> None:
        self.caching = enable
        self.cached_k: Tensor | None = None
        self.cached_v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = F.normalize(q, dim=-1) * QUERY_SCALE, F.normalize(k, dim=-1)
        if self.caching:
            if self.cached_k is None or self.cached_v is None:
                self.cached_k, self.cached_v = k, v
            else:
                k = self.cached_k = torch.cat((self.cached_k, k), dim=2)
                v = self.cached_v = torch.cat((self.cached_v, v), dim=2)
        if self.hand_written:
            out = torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.proj(_merge(out))


class AdaBlock(nn.Module):
    """AdaLN block: attention and feed-forward, modulated by the class."""

    def __init__(self, width: int, heads: int, hand_written: bool = False) -> None:
        super().__init__()
        self.attn = CachedAttention(width, heads, hand_written)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor, cond_BD: Tensor) -> Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = self.modulation(cond_BD)[:, None].chunk(6, dim=-1)
        x = x + (1 + gate1) * self.attn(self.norm(x) * (1 + scale1) + shift1)
        return x + (1 + gate2) * self.ffn(self.norm(x) * (1 + scale2) + shift2)


class MixingBlock(AdaBlock):
    """A block whose feed-forward mixes neighbouring tokens: it cannot run on fewer of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.mix = nn.Conv1d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, cond_BD: Tensor) -> Tensor:
        x = super().forward(x, cond_BD)
        return x + self.mix(x.transpose(1, 2)).transpose(1, 2)


class ShiftedBlock(AdaBlock):
    """A block that has a buffer, as those of the official VAR and Infinity do."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.register_buffer("shift", torch.randn(width), persistent=False)

    def forward(self, x: Tensor, cond_BD: Tensor) -> Tensor:
        return super().forward(x + self.shift, cond_BD)


class Codebook(nn.Module):
    """The part of a residual tokenizer that generation needs."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)

    def add(self, f_hat: Tensor, idx: Tensor, side: int) -> Tensor:
        """``f_hat`` [B, C, G, G] plus what the codes ``idx`` [B, side * side] stand for."""
        h = self.embedding(idx).transpose(1, 2).unflatten(2, (side, side))
        return f_hat + F.interpolate(h, size=f_hat.shape[-2:], mode="nearest")


class ClassVAR(nn.Module):
    """Official-VAR style: ``patch_nums``, cache on attributes, tokenizer in a tuple, CFG rows stacked."""

    hand_written = False
    block_type: type[AdaBlock] = AdaBlock

    def __init__(
        self, depth: int = 3, width: int = 32, heads: int = 4, patch_nums: Sequence[int] = (1, 2, 3, 4, 6)
    ) -> None:
        super().__init__()
        self.patch_nums = tuple(patch_nums)
        self.classes, self.width = 10, width
        self.vae_proxy = (Codebook(48, width),)
        self.class_emb = nn.Embedding(self.classes + 1, width)
        self.lvl_embed = nn.Embedding(len(self.patch_nums), width)
        self.pos = nn.Parameter(torch.randn(1, sum(n * n for n in self.patch_nums), width))
        self.blocks = nn.ModuleList(self._block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, 48)

    def _block(self, width: int, heads: int) -> nn.Module:
        return self.block_type(width, heads)

    @torch.no_grad()
    def autoregressive_infer_cfg(self, labels: Tensor, cfg: float = 1.5) -> Tensor:
        """Class labels [B] -> features [B, C, G, G]."""
        rows = torch.cat((labels, torch.full_like(labels, self.classes))) if cfg else labels
        cond = self.class_emb(rows)
        lvl = torch.cat([torch.full((n * n,), i) for i, n in enumerate(self.patch_nums)])[None]
        places = self.pos + self.lvl_embed(lvl)
        grid, begin = self.patch_nums[-1], 0
        f_hat = cond.new_zeros(len(labels), self.width, grid, grid)
        tokens = cond[:, None]
        for block in self.blocks:
            block.attn.kv_caching(True)
        for side in self.patch_nums:
            if begin:
                small = F.adaptive_avg_pool2d(f_hat, side).flatten(2).transpose(1, 2)
                tokens = small.repeat(2, 1, 1) if cfg else small
            x = tokens + places[:, begin : begin + side * side]
            begin += side * side
            for block in self.blocks:
                x = block(x=x, cond_BD=cond)
            f_hat = self.vae_proxy[0].add(f_hat, self._codes(self.head(x), len(labels), cfg), side)
        for block in self.blocks:
            block.attn.kv_caching(False)
        return f_hat

    @staticmethod
    def _codes(logits: Tensor, samples: int, cfg: float) -> Tensor:
        if cfg:
            logits = (1 + cfg) * logits[:samples] - cfg * logits[samples:]
        return logits.argmax(-1)


class HandWrittenVAR(ClassVAR):
    """The same with ``softmax(q @ k.T) @ v`` written out."""

    def _block(self, width: int, heads: int) -> nn.Module:
        return AdaBlock(width, heads, hand_written=True)


class MixingVAR(ClassVAR):
    """The same with blocks that mix neighbouring tokens."""

    block_type = MixingBlock


class ShiftedVAR(ClassVAR):
    """The same with blocks that have buffers."""

    block_type = ShiftedBlock


class TextBlock(nn.Module):
    """A plain block over prompt words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.ffn = (nn.Linear(width, n * width) for n in (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(part, 2) for part in self.qkv(x).chunk(3, dim=-1))
        x = x + self.proj(_merge(F.scaled_dot_product_attention(q, k, v)))
        return x + self.ffn(x)


class CrossBlock(nn.Module):
    """Rope, cross-attention to the prompt, and a cache that is passed in and returned."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, text: Tensor, rope: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = (_heads(part, self.heads) for part in self.qkv(self.norm(x)).chunk(3, dim=-1))
        q, k = rotate(q * QUERY_SCALE, *rope), rotate(k, *rope)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        x = x + self.proj(_merge(F.scaled_dot_product_attention(q, k, v)))
        tk, tv = (_heads(part, self.heads) for part in self.key_value(text).chunk(2, dim=-1))
        x = x + _merge(F.scaled_dot_product_attention(_heads(self.query(x), self.heads), tk, tv))
        return x + self.ffn(self.norm(x)), (k, v)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class TextVAR(nn.Module):
    """Text to image without stated schedule and without CFG; the cache is passed through ``forward``.

    The text encoder has more blocks than the image transformer, but smaller ones.
    """

    def __init__(
        self, depth: int = 2, width: int = 32, heads: int = 4, sides: Sequence[int] = (1, 2, 4, 8, 16)
    ) -> None:
        super().__init__()
        self.sides, self.width, self.heads = tuple(sides), width, heads
        self.words = nn.Embedding(20, width)
        self.text_blocks = nn.ModuleList(TextBlock(width) for _ in range(depth + 2))
        self.layers = nn.ModuleList(CrossBlock(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, 48)
        self.codebook = Codebook(48, width)

    def encode(self, word_ids: Tensor) -> Tensor:
        """Word ids [B, T] -> [B, T, C]."""
        text = self.words(word_ids)
        for block in self.text_blocks:
            text = block(text)
        return text

    def rope(self, side: int) -> tuple[Tensor, Tensor]:
        """Tables [side * side, D / 2] of cosines and sines."""
        place = torch.arange(side * side, dtype=self.head.weight.dtype)
        steps = torch.arange(self.width // self.heads // 2) + 1.0
        angle = place[:, None] / side / steps
        return angle.cos(), angle.sin()

    def forward(
        self, x: Tensor, text: Tensor, side: int, pasts: list[tuple[Tensor, Tensor] | None]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        """One scale: tokens [B, N, C] -> logits [B, N, V] and the caches for the next scale."""
        new: list[tuple[Tensor, Tensor] | None] = []
        for layer, past in zip(self.layers, pasts, strict=True):
            x, grown = layer(x, text, self.rope(side), past)
            new.append(grown)
        return self.head(x), new

    @torch.no_grad()
    def paint(self, word_ids: Tensor) -> Tensor:
        """Word ids [B, T] -> features [B, C, G, G]."""
        text, grid = self.encode(word_ids), self.sides[-1]
        f_hat = text.new_zeros(len(text), self.width, grid, grid)
        x, pasts = text.mean(1, keepdim=True), [None] * len(self.layers)
        for scale, side in enumerate(self.sides):
            if scale:
                x = F.adaptive_avg_pool2d(f_hat, side).flatten(2).transpose(1, 2) + text.mean(1, keepdim=True)
            logits, pasts = self(x, text, side, pasts)
            f_hat = self.codebook.add(f_hat, logits.argmax(-1), side)
        return f_hat


def make(
    kind: type[nn.Module], seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: object
) -> nn.Module:
    """A toy with reproducible weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        toy = kind(**sizes)
    for held in getattr(toy, "vae_proxy", ()):
        held.to(dtype)
    return toy.to(dtype).eval()
