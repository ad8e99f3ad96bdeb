"""EmojiVAR: next-scale prediction over the codes of a multi-scale residual tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Block, TextEncoder
from .config import Config
from .layers import RotaryGrid, at_least_float32, rms_norm
from .prompts import Prompt, encode
from .sampling import Sampler, guide
from .tokenizer import Tokenizer
from .vocabulary import Vocabulary


class Head(nn.Module):
    """Modulated norm and a linear layer to the codes' logits."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, codes)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            self.linear.weight.mul_(0.1)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        """Tokens ``[B, N, C]`` and pooled prompt ``[B, C]`` -> logits ``[B, N, V]`` in the weights' dtype."""
        scale, shift = self.modulation(F.silu(pooled)).unsqueeze(1).chunk(2, dim=-1)
        return self.linear((rms_norm(x) * (1 + scale) + shift).to(pooled.dtype))


class EmojiVAR(nn.Module):
    """Text to 256x256 picture: a text encoder, 16 transformer blocks and a multi-scale tokenizer."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        self.patch_nums = config.patch_nums
        self.vocabulary = Vocabulary()
        self.tokenizer = Tokenizer(
            config.patch_nums, config.codes, config.code_width, config.tokenizer_widths
        )
        width, heads = config.width, config.heads
        self.text_encoder = TextEncoder(config.vocabulary_size, config.prompt_length, width, heads)
        self.rope = RotaryGrid(config.patch_nums, width // heads)
        self.start = nn.Linear(width, width)
        self.code_embed = nn.Linear(config.code_width, width)
        self.position_embed = nn.Linear(width // heads, width)
        self.scale_embed = nn.Embedding(len(config.patch_nums), width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(config.depth))
        self.head = Head(width, config.codes)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.normal_(self.scale_embed.weight, std=0.1)

    def condition(self, word_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Word ids ``[B, T]`` -> context ``[B, T, C]``, pooled ``[B, C]`` and modulation ``[B, 6, C]``."""
        context, pooled = self.text_encoder(word_ids)
        return context, pooled, self.modulation(F.silu(pooled)).unflatten(-1, (6, -1))

    def places(self, cos: Tensor, sin: Tensor) -> Tensor:
        """Position and scale embeddings ``[L, C]`` of the first tokens, from their rotary tables."""
        tables = torch.cat([cos, sin], dim=-1).to(self.position_embed.weight.dtype)
        return self.position_embed(tables) + self.scale_embed(self.rope.scale_of[: len(tables)])

    def forward(self, word_ids: Tensor, inputs: Tensor) -> Tensor:
        """Teacher forcing: the logits of all scales at once.

        Args:
            word_ids: ``[B, T]`` int64.
            inputs: ``[B, L - 1, code_width]``, the tokenizer's input features of every scale but the first.
                ``L`` may end after any scale: attention looks back only, so the logits do not change.

        Returns:
            ``[B, L, V]``, equal to what generation computes scale by scale from the same codes.

        Raises:
            ValueError: ``L`` is not the end of a scale.
        """
        length = inputs.shape[1] + 1
        ends = [end for end in self.config.ends if end <= length]
        if not ends or ends[-1] != length:
            raise ValueError(
                f"forward requires the tokens of whole scales, one of {self.config.ends}, got {length}; "
                "pass as inputs what Tokenizer.quantize returns"
            )
        context, pooled, modulation = self.condition(word_ids)
        cos, sin = (table[:length] for table in self.rope())
        features = self.code_embed(inputs.to(self.code_embed.weight.dtype))
        x = torch.cat([self.start(pooled).unsqueeze(1), features], dim=1)
        x = x + self.places(cos, sin).to(x.dtype)
        for block in self.blocks:
            x = block(x, context, modulation, cos, sin, ends)
        return self.head(x, pooled)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str | Prompt],
        *,
        seed: int | Sequence[int] = 0,
        guidance: float = 2.0,
        temperature: float = 0.85,
        top_k: int | None = 100,
        greedy_from: int | None = 16,
    ) -> Tensor:
        """Paint one picture per prompt.

        Args:
            prompts: see :mod:`examples.emojivar.prompts` for the grammar.
            seed: of the first picture; picture ``i`` uses ``seed + i``, so that alone it comes out as
                ``generate([prompts[i]], seed=seed + i)``. Or one seed per picture.
            guidance: strength of classifier-free guidance; 1 is none.
            temperature: of sampling.
            top_k: sample among this many best codes; None for all.
            greedy_from: scales of at least this side take the best code instead; None to sample them all.

        Returns:
            ``[B, 3, 256, 256]`` in [0, 1], at least float32, on the model's device.

        Raises:
            PromptError: a word outside the vocabulary or a sentence outside the grammar (a ValueError).
            ValueError: another argument out of its range.
        """
        prompts = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
        seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
        _check_arguments(len(prompts), seeds, guidance, temperature, top_k)
        word_ids = encode(prompts, self.vocabulary, self.config.prompt_length).to(self.start.weight.device)
        sampler = Sampler(seeds, temperature, top_k)

        # rows: the prompts, then as many empty ones for guidance
        context, pooled, modulation = self.condition(torch.cat([word_ids, torch.zeros_like(word_ids)]))
        cos, sin = self.rope()
        places = self.places(cos, sin)
        f_hat = self.tokenizer.empty_features(len(prompts))
        x = self.start(pooled).unsqueeze(1)
        begin = 0
        for block in self.blocks:
            block.attn.kv_caching(True)
        for scale, side in enumerate(self.patch_nums):
            end = begin + side * side
            if scale > 0:
                inputs = self.tokenizer.downscale(f_hat, scale).to(self.code_embed.weight.dtype)
                x = self.code_embed(torch.cat([inputs, inputs]))
            x = x + places[begin:end]
            for block in self.blocks:
                x = block(x, context, modulation, cos[begin:end], sin[begin:end])
            logits = guide(at_least_float32(self.head(x, pooled)), guidance)
            idx = logits.argmax(-1) if greedy_from is not None and side >= greedy_from else sampler(logits)
            f_hat = f_hat + self.tokenizer.code_features(idx, scale)
            begin = end
        for block in self.blocks:
            block.attn.kv_caching(False)
        return self.tokenizer.decode(f_hat)


def _check_arguments(
    count: int, seeds: Sequence[int], guidance: float, temperature: float, top_k: int | None
) -> None:
    """Refuse arguments of :meth:`EmojiVAR.generate` that have no meaning."""
    if count == 0:
        raise ValueError("generate requires at least one prompt, got none; pass e.g. ['a cat']")
    if len(seeds) != count:
        raise ValueError(
            f"generate requires one seed per prompt ({count}), got {len(seeds)}; pass a single int instead"
        )
    if not math.isfinite(guidance):
        raise ValueError(f"guidance requires a finite number, got {guidance}; 1.5 to 3 work well")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"temperature requires a number above 0, got {temperature}; for the best codes use greedy_from=1"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k requires at least 1, got {top_k}; use None for no limit")
