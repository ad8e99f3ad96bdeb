"""Statistics of layers, against plain Python, LAPACK and the model's own attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import layer_statistics
from benchmarks.layer_statistics import (
    STATISTICS,
    Watcher,
    attention_weights,
    entropy_statistics,
    pruning_statistics,
    resized,
    update_statistics,
)
from examples.emojivar import EmojiVAR
from examples.emojivar.attention import SelfAttention
from examples.emojivar.config import SMOKE
from examples.emojivar.layers import RotaryGrid, merge_heads, split_heads
from toprovar_compiler.policies.calibration import Gate

PROMPTS = ["a red mug on a plain white background", "a cat on a plain teal background"]


@pytest.fixture
def model() -> EmojiVAR:
    """Small, and with weights where a new model has zeros, so that its layers do something."""
    torch.manual_seed(0)
    made = EmojiVAR(SMOKE).eval()
    with torch.no_grad():
        for block in made.blocks:
            for layer in (block.attn.out, block.cross.out, block.mlp.down):
                layer.weight.normal_(std=0.1)
    return made


@pytest.fixture
def gates() -> dict[int, Gate]:
    rows = ((1.0, -2.0), (0.5, 3.0))  # two layers of two heads
    return {scale: Gate(rows, ((0.0, 0.0), (0.0, 0.0)), 0.0, 0.5) for scale in range(3)}


def test_statistics_of_an_entropy_map() -> None:
    torch.manual_seed(0)
    entropy, keys = torch.rand(3, 16) + 1, 40
    found = entropy_statistics(entropy, keys)
    shares = entropy.double().numpy() / math.log(keys)
    tokens = sorted(shares.mean(0).tolist())
    first, second, *_ = np.linalg.svd(shares.mean(0).reshape(4, 4), compute_uv=False)
    centred, next_centred, *_ = np.linalg.svd(
        (shares.mean(0) - shares.mean()).reshape(4, 4), compute_uv=False
    )
    mean = sum(tokens) / 16
    assert found == pytest.approx(
        {
            "spectrum": first / second,
            "score": math.exp(-0.025 * (first / second - 1)),
            "centred-spectrum": centred / next_centred,
            "entropy": mean,
            "entropy-std": math.sqrt(sum((t - mean) ** 2 for t in tokens) / 15),
            "entropy-contrast": (sum(tokens[-5:]) - sum(tokens[:5])) / 5 / mean,
            "entropy-of-heads": np.std(shares.mean(1), ddof=1),
        },
        rel=1e-3,  # of raw_spectrum, where singular values are near to one another
    )


def test_statistics_of_an_update() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    after = torch.tensor([[1.0, 1.0], [0.0, 4.0], [3.0, 3.0], [0.0, 8.0]])
    found = update_statistics(before, after, earlier=torch.tensor([[0.0, 5.0]]))
    diagonal = math.sqrt(0.5)
    # updates (0, 1), (0, 2), (0, 3), (0, 4): all along the earlier one; their mean is (0, 2.5)
    assert found == pytest.approx(
        {
            "relative-update": 1.0,
            "stream-turn": (2 * (1 - diagonal)) / 4,
            "settled": 1.0,
            "update-spread": (1.5**2 + 0.5**2 + 0.5**2 + 1.5**2) / 30,
        }
    )


def test_statistics_of_pruning_one_layer() -> None:
    update = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    of_kept = torch.tensor([[3.0, 3.0], [0.0, 0.0]])
    last = torch.tensor([[10.0, 0.0], [0.0, 4.0], [0.0, 1.0]])
    found = pruning_statistics(update, of_kept, torch.tensor([0, 2]), last)
    assert found == pytest.approx(
        {
            "update-in-the-end": (5 / 10 + 2 / 4 + 1 / 1) / 3,
            "kept-change": (1 / 5 + 1 / 1) / 2,
            "local-error": (1 / 10 + 2 / 4 + 1 / 1) / 3,
        }
    )


def test_updates_are_resized_in_the_order_of_the_tokens() -> None:
    small = torch.tensor([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0], [3.0, 13.0]])
    large = resized(small, 16)
    assert large[[0, 3, 12, 15]].tolist() == small.tolist()
    torch.testing.assert_close(large.mean(0), small.mean(0))
    assert large[1].tolist() == pytest.approx([0.25, 10.25])


def test_the_weights_are_those_of_the_models_attention() -> None:
    torch.manual_seed(0)
    attn = SelfAttention(32, 2).eval()
    torch.nn.init.eye_(attn.out.weight)
    cos, sin = RotaryGrid((1, 3), 16)()
    attn.kv_caching(True)
    x = torch.randn(1, 10, 32)
    with torch.no_grad():
        attn(x[:, :1], cos[:1], sin[:1])
        expected = attn(x[:, 1:], cos[1:], sin[1:])
        weights = attention_weights(attn, x[0, 1:], cos[1:], sin[1:], attn.cached_k[0])
        values = split_heads(attn.qkv(x).chunk(3, dim=-1)[2], 2)
    assert weights.shape == (2, 9, 10)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 9))
    torch.testing.assert_close(merge_heads(weights[None] @ values), expected)


def test_a_generation_is_watched_without_changing_it(model: EmojiVAR, gates: dict[int, Gate]) -> None:
    expected = model.generate(PROMPTS, seed=5)
    seen: list[Tensor] = []
    decode = model.tokenizer.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.tokenizer, "decode", lambda f: seen.append(decode(f)) or seen[-1])
        found = Watcher(model, gates, [2, 3]).watch(PROMPTS, seed=5)
    torch.testing.assert_close(seen[0], expected)
    assert set(found) == set(STATISTICS)
    for values in found.values():
        assert np.array(values).shape == (2, SMOKE.depth, 2)
        assert np.isfinite(values).all()
    assert not any(block._forward_hooks or block.attn._forward_hooks for block in model.blocks)
    alone = Watcher(model, gates, [2, 3]).watch(PROMPTS[1:], seed=6)
    for name, values in alone.items():
        assert np.array(values)[0] == pytest.approx(np.array(found[name])[1], rel=1e-3)


def test_the_entropies_that_are_watched_are_those_of_the_attention(
    model: EmojiVAR, gates: dict[int, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a softmax written out, at the first layer's last scale, in the first batch row."""
    expected: list[Any] = []
    sdpa = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Tensor:
        if q.shape[2] == 64 and k.shape[2] == 85:
            weights = (q[0].double() @ k[0].double().mT).softmax(-1)
            entropy = -(weights * weights.log()).sum(-1).mean() / math.log(85)
            expected.append((float(entropy), float(weights[..., 21:].sum(-1).mean())))
        return sdpa(q, k, v, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    found = Watcher(model, gates, [3]).watch(PROMPTS, seed=0)
    entropy, own = expected[0]
    assert found["entropy"][0][0][0] == pytest.approx(entropy, rel=1e-5)
    assert found["own-scale-attention"][0][0][0] == pytest.approx(own, rel=1e-5)


def test_keeping_all_tokens_changes_nothing(
    model: EmojiVAR, gates: dict[int, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Watcher(model, gates, [3]).watch(PROMPTS, seed=0)
    assert np.min(some["local-error"]) > 0.01
    monkeypatch.setattr(layer_statistics, "SHARE", 1.0)
    every = Watcher(model, gates, [3]).watch(PROMPTS, seed=0)
    assert np.max(every["kept-change"]) == pytest.approx(0, abs=1e-5)
    assert np.max(every["local-error"]) == pytest.approx(0, abs=1e-5)
    assert every["relative-update"] == some["relative-update"]
