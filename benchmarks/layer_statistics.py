"""What a dense run shows of each layer, from which one might tell how much pruning it harms.

The embedded model runs eagerly with hooks: they see each block's stream before and after it, and compute its
attention weights again, in full. All numbers are of the first batch row of each picture, the conditional one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from examples.emojivar import EmojiVAR
from examples.emojivar.attention import LARGEST_LOG_SCALE, SelfAttention
from examples.emojivar.blocks import Block
from examples.emojivar.layers import at_least_float32, rotate, split_heads, unit
from toprovar_compiler.options import DEFAULT_LAYER_BETA
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.calibrated_entropy import CalibratedEntropy
from toprovar_compiler.policies.calibration import Gate
from toprovar_compiler.policies.layer_classes import representation_score
from toprovar_compiler.policies.layer_spectrum import centred_spectrum, raw_spectrum

STATISTICS = {
    "spectrum": "sigma_1 / sigma_2 of the entropy map (section 4)",
    "score": "R of that (eq. 4), at the default beta",
    "centred-spectrum": "sigma_1 / sigma_2 of the map less its mean",
    "entropy": "mean entropy, over log Nk",
    "entropy-std": "its standard deviation over tokens",
    "entropy-contrast": "mean of the highest 30 % less that of the lowest, over the mean of all",
    "entropy-of-heads": "standard deviation of the heads' mean entropies",
    "own-scale-attention": "share of the attention that goes to tokens of the same scale",
    "relative-update": "length of the update over that of the stream before it",
    "stream-turn": "1 - cosine of the stream before and after",
    "update-in-the-end": "length of the update over that of the stream after the last layer",
    "settled": "cosine of the update and that of the scale before, resized",
    "update-spread": "share of the update's energy that is not in its mean over tokens",
    "kept-change": "change of kept tokens' updates where only they are computed, over the updates",
    "local-error": "change of all tokens where the others pass the layer by, over the last layer's stream",
}
SHARE = 0.3  # of the tokens: those that are kept, and those that count as the highest and the lowest


def entropy_statistics(entropy: Tensor, keys: int) -> dict[str, float]:
    """Of one layer's entropies [H, N] in nats over so many keys, N on a square grid."""
    share = entropy.double() / math.log(keys)
    tokens = share.mean(0)
    side, ends = math.isqrt(len(tokens)), round(SHARE * len(tokens))
    ordered, grid = tokens.sort().values, tokens.view(side, side)
    ratio = raw_spectrum(grid).ratio
    return {
        "spectrum": float(ratio),
        "score": float(representation_score(ratio, DEFAULT_LAYER_BETA["spectrum"])),
        "centred-spectrum": float(centred_spectrum(grid).ratio),
        "entropy": float(tokens.mean()),
        "entropy-std": float(tokens.std()),
        "entropy-contrast": float((ordered[-ends:].mean() - ordered[:ends].mean()) / tokens.mean()),
        "entropy-of-heads": float(share.mean(1).std()),
    }


def update_statistics(before: Tensor, after: Tensor, earlier: Tensor) -> dict[str, float]:
    """Of one layer's stream [N, C] before and after it, and its update [n, C] at the scale before."""
    before, after = before.double(), after.double()
    update = after - before
    energy = update.square().sum()
    return {
        "relative-update": float((update.norm(dim=1) / before.norm(dim=1)).mean()),
        "stream-turn": float(1 - cosine_similarity(before, after, dim=1).mean()),
        "settled": float(cosine_similarity(update, resized(earlier.double(), len(update)), dim=1).mean()),
        "update-spread": float((update - update.mean(0)).square().sum() / energy),
    }


def pruning_statistics(update: Tensor, of_kept: Tensor, kept: Tensor, last: Tensor) -> dict[str, float]:
    """What changes in one layer where it computes the kept tokens [K] alone and others pass it by.

    Args:
        update: [N, C], what the layer adds where it computes all tokens.
        of_kept: [K, C], what it adds to the kept ones where it computes these alone.
        last: [N, C], the stream after the last layer.
    """
    update, of_kept, lengths = update.double(), of_kept.double(), last.double().norm(dim=1)
    pruned = torch.zeros_like(update).index_copy(0, kept, of_kept)
    change = (of_kept - update[kept]).norm(dim=1)
    return {
        "update-in-the-end": float((update.norm(dim=1) / lengths).mean()),
        "kept-change": float((change / update[kept].norm(dim=1)).mean()),
        "local-error": float(((pruned - update).norm(dim=1) / lengths).mean()),
    }


def resized(update: Tensor, tokens: int) -> Tensor:
    """[n, C] on a square grid to [tokens, C] on another, between the nearest four."""
    old, new = math.isqrt(len(update)), math.isqrt(tokens)
    grid = update.T.reshape(1, -1, old, old)
    return interpolate(grid, size=(new, new), mode="bilinear", align_corners=False)[0].flatten(1).T


def attention_weights(attn: SelfAttention, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor) -> Tensor:
    """[H, N, Nk] float32 of one row: block input x [N, C], rotary tables, and all keys [H, Nk, D]."""
    query = split_heads(attn.qkv(x[None]).chunk(3, dim=-1)[0], attn.heads)
    scale = at_least_float32(attn.log_scale).clamp(max=LARGEST_LOG_SCALE).exp()
    query = rotate(unit(query) * scale, cos, sin).to(keys.dtype)[0]
    return at_least_float32(query @ keys.mT).softmax(-1)


class Watcher:
    """Watches dense generations.

    Args:
        gates: the model's calibration, whose ranking says which tokens would be kept.
        scales: which ones to look at, in ascending order and without a gap.
    """

    def __init__(self, model: EmojiVAR, gates: Mapping[int, Gate], scales: Sequence[int]) -> None:
        self._model, self._gates, self._scales = model, gates, scales

    def watch(self, prompts: Sequence[str], seed: int) -> dict[str, list[list[list[float]]]]:
        """Statistic -> [pictures, layers, scales], of one generation of the model, which must run eagerly."""
        watched = _Generation(self._model, CalibratedEntropy(self._gates), self._scales, len(prompts))
        with ExitStack() as stack:
            for layer, block in enumerate(self._model.blocks):
                stack.callback(block.attn.register_forward_hook(watched.attention_ran(layer)).remove)
                stack.callback(block.register_forward_hook(watched.block_ran(layer)).remove)
            stack.enter_context(torch.inference_mode())
            self._model.generate(prompts, seed=seed)
        layers = range(len(self._model.blocks))
        return {
            name: [
                [[of[name, layer, scale] for scale in self._scales] for layer in layers]
                for of in watched.found
            ]
            for name in STATISTICS
        }


class _Generation:
    """One generation as it runs: what the statistics need of the scale before, and of the layers before."""

    def __init__(
        self, model: EmojiVAR, source: CalibratedEntropy, scales: Sequence[int], pictures: int
    ) -> None:
        self.found: list[dict[tuple[str, int, int], float]] = [{} for _ in range(pictures)]
        self._blocks, self._source, self._scales, self._pictures = model.blocks, source, scales, pictures
        self._tokens = [side * side for side in model.patch_nums]
        self._scale, self._again = 0, False
        self._updates: dict[
            int, Tensor
        ] = {}  # layer -> [pictures, N, C], of the scale before, then of this one
        self._of_kept: dict[int, Tensor] = {}  # layer -> [pictures, K, C]
        self._kept = torch.empty(0)

    def attention_ran(self, layer: int) -> Callable[..., None]:
        def hook(attn: SelfAttention, given: tuple[Any, ...], _: Tensor) -> None:
            if self._again or self._scale + 1 < self._scales[0]:
                return
            x, cos, sin, *_rest = given
            entropies = []
            for picture in range(self._pictures):
                weights = attention_weights(attn, x[picture], cos, sin, attn.cached_k[picture])
                entropies.append(-weights.xlogy(weights).sum(-1))
                if self._scale in self._scales:
                    own = {"own-scale-attention": float(weights[..., -x.shape[1] :].sum(-1).mean())}
                    own |= entropy_statistics(entropies[-1], weights.shape[-1])
                    self._note(picture, layer, own)
            outcome = Outcome(torch.stack(entropies), None, x, x, attn.cached_k.shape[2])
            self._source.observe(self._step(layer, len(x)), outcome)

        return hook

    def block_ran(self, layer: int) -> Callable[..., None]:
        def hook(block: Block, given: tuple[Any, ...], after: Tensor) -> None:
            before = given[0]
            update = (after - before)[: self._pictures]
            if self._scale in self._scales:
                if layer == 0:
                    self._choose(len(before))
                for picture in range(self._pictures):
                    earlier = self._updates[layer][picture]
                    self._note(picture, layer, update_statistics(before[picture], after[picture], earlier))
                self._of_kept[layer] = self._run_kept(block, given)
            self._updates[layer] = update
            if layer == len(self._blocks) - 1:
                self._end_scale(after)

        return hook

    def _choose(self, rows: int) -> None:
        """Which tokens of this scale would be kept: [pictures, K]."""
        scores = self._source.scores(self._step(0, rows))
        assert scores is not None, "the calibration has a gate for the scale before"
        self._kept = scores.sort(stable=True).indices[:, : round(SHARE * scores.shape[1])].sort().values

    def _run_kept(self, block: Block, given: tuple[Any, ...]) -> Tensor:
        """[pictures, K, C], what the block adds to kept tokens where only they are computed."""
        x, context, modulation, cos, sin = given
        attn, added = block.attn, []
        earlier = attn.cached_k.shape[2] - x.shape[1]
        self._again = True
        for picture, kept in enumerate(self._kept):
            one = slice(picture, picture + 1)
            cache = {name: getattr(attn, name)[one, :, :earlier] for name in ("cached_k", "cached_v")}
            with mock.patch.multiple(attn, **cache):
                stream = x[one, kept]
                added.append(
                    block.forward(stream, context[one], modulation[one], cos[kept], sin[kept]) - stream
                )
        self._again = False
        return torch.cat(added)

    def _end_scale(self, last: Tensor) -> None:
        if self._scale in self._scales:
            for layer, of_kept in self._of_kept.items():
                for picture, kept in enumerate(self._kept):
                    found = pruning_statistics(
                        self._updates[layer][picture], of_kept[picture], kept, last[picture]
                    )
                    self._note(picture, layer, found)
        self._scale += 1

    def _note(self, picture: int, layer: int, values: Mapping[str, float]) -> None:
        self.found[picture] |= {(name, layer, self._scale): value for name, value in values.items()}

    def _step(self, layer: int, rows: int) -> Step:
        tokens = self._tokens[self._scale]
        return Step(
            self._scale, layer, tokens, sum(self._tokens[: self._scale]), rows, rows // self._pictures
        )
