"""Marked attention gets its entropy inside; the results stay, the maps come behind them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.passes.graphs import count, rewritten, run, targets
from tests.passes.toy_block import (
    CACHED,
    Attend,
    B,
    Block,
    C,
    D,
    H,
    Inputs,
    N,
    assert_equal,
    captured,
    make_inputs,
    sdpa,
    typed,
)
from tests.property.entropy_oracle import softmax_entropy
from toprovar_compiler.passes.attention import SDPA
from toprovar_compiler.passes.fuse_entropy import FuseEntropy
from toprovar_compiler.passes.graph_tools import clone, outputs

aten = torch.ops.aten
FUSED = torch.ops.toprovar.flash_attention_entropy


def _observed(attend: Attend, seen: list[Tensor], scale: float, bias: Tensor | None = None) -> Attend:
    """The same attention; the oracle's entropies [B, H, Nq] of what it is given go to ``seen``."""

    def observing(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
        seen.append(softmax_entropy(q, k, scale, bias))
        return attend(q, k, v, given)

    return observing


def test_sdpa_becomes_attention_with_entropy() -> None:
    before = typed(Block(), make_inputs())
    after = rewritten(before, FuseEntropy())
    assert (count(before, SDPA), count(before, FUSED)) == (1, 0)
    assert (count(after, SDPA), count(after, FUSED)) == (0, 1)
    added = targets(after) - targets(before)
    assert added == {
        "aten.to.dtype": 3,
        "toprovar.flash_attention_entropy.default": 1,
        "<built-in function getitem>": 2,
    }
    assert len(outputs(after.graph)) == len(outputs(before.graph)) + 1


# A bias in the attention, the dtype of which says how it is meant.
HIDDEN = torch.arange(CACHED + N) % 3 == 1
FLOAT = torch.linspace(-1.0, 1.0, CACHED + N, dtype=torch.float64)


def _slope(k: Tensor) -> Tensor:
    return torch.arange(k.shape[2], dtype=k.dtype) / 4 - 1


MASKED: dict[str, tuple[Attend, float, Tensor | None]] = {
    "sdpa": (sdpa, D**-0.5, None),
    "scale": (lambda q, k, v, g: F.scaled_dot_product_attention(q, k, v, scale=0.3), 0.3, None),
    "bool mask": (
        lambda q, k, v, g: F.scaled_dot_product_attention(
            q, k, v, attn_mask=(torch.arange(k.shape[2]) % 3 != 1)[None]
        ),
        D**-0.5,
        ~HIDDEN,
    ),
    "filled by hand": (
        lambda q, k, v, g: (
            (q @ k.mT).masked_fill(torch.arange(k.shape[2]) % 3 == 1, -math.inf).softmax(-1) @ v
        ),
        1.0,
        ~HIDDEN,
    ),
    "float bias": (
        lambda q, k, v, g: (q @ k.mT * 0.5 + _slope(k)).softmax(-1) @ v,
        0.5,
        torch.arange(CACHED + N, dtype=torch.float64) / 4 - 1,
    ),
}


@pytest.mark.parametrize(("attend", "scale", "bias"), MASKED.values(), ids=MASKED)
def test_entropy_is_that_of_the_attentions_own_rows(
    attend: Attend, scale: float, bias: Tensor | None
) -> None:
    inputs, maps = make_inputs(), []
    after = rewritten(typed(Block(attend), inputs), FuseEntropy())
    expected = Block(_observed(attend, maps, scale, bias))(inputs)
    actual = run(after, *inputs.values())
    assert actual[-1].shape == (B, H, N)
    assert_equal(actual, [*expected, *maps])


def test_grouped_queries_keep_their_groups() -> None:
    def grouped(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
        return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)

    inputs, maps = make_inputs(), []

    def observing(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
        maps.append(softmax_entropy(q, k[:, :1], D**-0.5))
        return grouped(q, k, v, given)

    after = rewritten(typed(Block(grouped), inputs), FuseEntropy())
    expected = Block(observing)(inputs)
    assert_equal(run(after, *inputs.values()), [*expected, *maps])


def test_maps_come_in_the_order_of_the_attentions() -> None:
    inputs = make_inputs()

    def two(maps: list[Tensor]) -> list[object]:
        x, k, v = Block(_observed(sdpa, maps, D**-0.5))(inputs)
        sharper = lambda q, k, v, g: F.scaled_dot_product_attention(q, k, v, scale=2.0)  # noqa: E731
        return [*Block(_observed(sharper, maps, 2.0))({**inputs, "x": x}), k, v, *maps]

    def program(given: Inputs) -> object:
        x, k, v = Block()(given)
        return (
            *Block(lambda q, k, v, g: F.scaled_dot_product_attention(q, k, v, scale=2.0))({**given, "x": x}),
            k,
            v,
        )

    gm = typed(program, inputs)
    fused = clone(gm)
    assert FuseEntropy()(fused) == 2
    fused.recompile()
    assert_equal(run(fused, *inputs.values()), two([]))


def test_attention_over_other_keys_is_left_alone() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
        return sdpa(q, k, v, given) + sdpa(q, given["text"], given["text"], given)

    inputs = make_inputs()
    after = rewritten(typed(Block(attend), inputs), FuseEntropy())
    assert (count(after, SDPA), count(after, FUSED)) == (1, 1)
    assert_equal(run(after, *inputs.values())[:-1], Block(attend)(inputs))


def test_a_graph_without_marks_is_left_alone() -> None:
    gm = captured(Block(), make_inputs())
    before = gm.code
    assert FuseEntropy()(gm) == 0
    gm.recompile()
    assert gm.code == before


def test_autocast_reaches_the_op_that_it_does_not_know() -> None:
    """Operands in the dtype that SDPA would have had, so that the result is of that dtype, too."""
    inputs = make_inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        before = typed(Block(), inputs)
        after = rewritten(before, FuseEntropy())
        expected, actual = run(before, *inputs.values()), run(after, *inputs.values())
    (fused,) = [node for node in after.graph.nodes if node.target is FUSED.default]
    assert [operand.args[1] for operand in fused.args[:3]] == [torch.bfloat16] * 3
    assert [value.dtype for value in actual[:-1]] == [value.dtype for value in expected]
    assert actual[-1].dtype == torch.float32, "entropy is not rounded"


def test_outputs_that_are_no_tensors_keep_their_places() -> None:
    inputs = make_inputs()
    block = Block(extra=lambda h, given: (None, given["cond"] * 2, 7))
    before = typed(block, inputs)
    after = rewritten(before, FuseEntropy())
    assert [type(item) for item in outputs(after.graph)[:-1]] == [type(i) for i in outputs(before.graph)]
    x, k, v, nothing, double, seven, entropy = run(after, *inputs.values())
    assert (x.shape, k.shape, v.shape) == ((B, N, C), (B, H, CACHED + N, D), (B, H, CACHED + N, D))
    assert (nothing, seven) == (None, 7)
    assert torch.equal(double, inputs["cond"] * 2)
    assert entropy.shape == (B, H, N)
