"""The repeated block: attention's two forms agree, and torch.compile makes few graphs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from examples import emojivar
from examples.emojivar import Config, EmojiVAR
from examples.emojivar.attention import block_causal_attention
from examples.emojivar.layers import RotaryGrid, rotate

Make = Callable[..., EmojiVAR]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Forget compiled code, and allow all graphs of a schedule."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch._dynamo.reset()


def test_the_model_knows_nothing_of_the_compiler() -> None:
    sources = list(Path(emojivar.__file__).parent.glob("*.py"))
    assert sources
    assert not [path.name for path in sources if "toprovar" in path.read_text(encoding="utf-8").lower()]


@pytest.mark.parametrize("ends", [(1,), (1, 5, 14), (1, 5, 21, 85, 229), (200, 300), (1, 161)])
def test_block_causal_attention_equals_a_mask(ends: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, ends[-1], 8, dtype=torch.float64)
    token = torch.arange(ends[-1])
    scale = torch.bucketize(token, torch.tensor(ends), right=True)
    mask = scale[:, None] >= scale[None, :]
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)
    torch.testing.assert_close(block_causal_attention(q, k, v, ends), expected, rtol=1e-12, atol=1e-12)


def test_rope_depends_on_distance_only() -> None:
    cos, sin = (table.double() for table in RotaryGrid((8,), 16)())
    q, k = torch.randn(2, 16, dtype=torch.float64)
    q, k = (rotate(x.expand(1, 1, 64, 16), cos, sin)[0, 0] for x in (q, k))
    scores = (q @ k.t()).view(8, 8, 8, 8)
    torch.testing.assert_close(scores[:-1, :-1, :-1, :-1], scores[1:, 1:, 1:, 1:], rtol=1e-5, atol=1e-5)


def test_rope_survives_a_cast_to_low_precision() -> None:
    grid = RotaryGrid((1, 2, 3), 16)
    expected = [table.clone() for table in grid()]
    for table, reference in zip(grid.to(torch.bfloat16)(), expected, strict=True):
        assert torch.equal(table, reference)


def test_three_graphs_serve_all_layers_and_pictures(small_model: Make) -> None:
    """N = 1 without a cache, the first cache, and all later scales with symbolic sizes; no graph breaks."""
    sizes = {"patch_nums": Config().patch_nums, "depth": Config().depth}
    expected = small_model(torch.float32, **sizes).generate(["a cat"])
    model = small_model(torch.float32, **sizes)
    counter = CompileCounter()
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True, dynamic=None)
    assert torch.equal(model.generate(["a cat"]), expected)
    assert counter.frame_count == 3
    model.generate(["a dog on a plain mint background"], seed=1)
    assert counter.frame_count == 3


def run_blocks(model: EmojiVAR, compiled: bool) -> Tensor:
    """Outputs ``[2, L, C]`` of the last block over all scales, from random inputs."""
    config = model.config
    random = torch.Generator().manual_seed(0)
    dtype = model.start.weight.dtype
    x_all = torch.randn(2, config.ends[-1], config.width, generator=random).to(dtype)
    context = torch.randn(2, config.prompt_length, config.width, generator=random).to(dtype)
    modulation = torch.randn(2, 6, config.width, generator=random).to(dtype)
    cos, sin = model.rope()
    if compiled:
        for block in model.blocks:
            block.compile(fullgraph=True, dynamic=None)
    outputs, begin = [], 0
    for block in model.blocks:
        block.attn.kv_caching(True)
    for end in config.ends:
        x = x_all[:, begin:end]
        for block in model.blocks:
            x = block(x, context, modulation, cos[begin:end], sin[begin:end])
        outputs.append(x)
        begin = end
    return torch.cat(outputs, dim=1).double()


def test_inductor_is_as_accurate_as_eager(small_model: Make) -> None:
    oracle = run_blocks(small_model(torch.float64), compiled=False)
    eager = run_blocks(small_model(torch.float32), compiled=False)
    compiled = run_blocks(small_model(torch.float32), compiled=True)
    eps = torch.finfo(torch.float32).eps
    bound = 2 * (eager - oracle).abs().max() + eps * oracle.abs().max()
    assert (compiled - oracle).abs().max() <= bound
