"""Where each op takes each dimension: as the rules say, and as permuted and cut inputs show."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tests.passes.graphs import capture_program
from tests.passes.toy_block import TOLERANCE
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.token_rules import track

SHAPE = (2, 3, 4, 6)
_WEIGHT = torch.linspace(-1, 1, 36, dtype=torch.float64).view(6, 6)
_ROWS = torch.linspace(-1, 2, 24, dtype=torch.float64).view(4, 6)

Refused = None


class Case(NamedTuple):
    """An op on [2, 3, 4, 6] (or ``shape``); ``lands[axis]`` is where that axis stands in the result."""

    op: Callable[[Tensor], object]
    lands: tuple[int | None, ...]
    shape: tuple[int, ...] = SHAPE


SAME = (0, 1, 2, 3)
CASES = {
    # each element alone
    "relu": Case(torch.relu, SAME),
    "gelu": Case(lambda x: F.gelu(x), SAME),
    "clone": Case(torch.clone, SAME),
    "to float": Case(lambda x: x.to(torch.float32), SAME),
    "add a number": Case(lambda x: x + 1.0, SAME),
    "add itself": Case(lambda x: x + x, SAME),
    "add more dimensions": Case(lambda x: x + torch.ones(5, 1, 1, 1, 1), (1, 2, 3, 4)),
    "where": Case(lambda x: torch.where(torch.ones(1, dtype=torch.bool), x, torch.zeros(1)), SAME),
    # along a dimension
    "softmax": Case(lambda x: x.softmax(-1), (0, 1, 2, Refused)),
    "softmax over the third": Case(lambda x: x.softmax(2), (0, 1, Refused, 3)),
    "log softmax": Case(lambda x: x.log_softmax(1), (0, Refused, 2, 3)),
    "cumsum": Case(lambda x: x.cumsum(1), (0, Refused, 2, 3)),
    "glu": Case(lambda x: F.glu(x, -1), (0, 1, 2, Refused)),
    "chunk": Case(lambda x: x.chunk(2, -1), (0, 1, 2, Refused)),
    "split": Case(lambda x: x.split(2, dim=2), (0, 1, Refused, 3)),
    "split with sizes": Case(lambda x: x.split([1, 2], 1), (0, Refused, 2, 3)),
    "cat": Case(lambda x: torch.cat([x, x], 2), (0, 1, Refused, 3)),
    "cat by default": Case(lambda x: torch.cat([x, x]), (Refused, 1, 2, 3)),
    "index select": Case(lambda x: x.index_select(1, torch.tensor([2, 0])), (0, Refused, 2, 3)),
    "repeat interleave": Case(lambda x: x.repeat_interleave(2, 1), (0, Refused, 2, 3)),
    "complex": Case(lambda x: torch.view_as_complex(x), (0, 1, 2, Refused), (2, 3, 4, 2)),
    "complex and back": Case(
        lambda x: torch.view_as_real(torch.view_as_complex(x)), (0, 1, 2, Refused), (2, 3, 4, 2)
    ),
    # reductions
    "mean": Case(lambda x: x.mean(1), (0, Refused, 1, 2)),
    "mean kept": Case(lambda x: x.mean(1, keepdim=True), (0, Refused, 2, 3)),
    "sum over two": Case(lambda x: x.sum((1, -1)), (0, Refused, 1, Refused)),
    "sum kept": Case(lambda x: x.sum((1, 3), keepdim=True), (0, Refused, 2, Refused)),
    "amax": Case(lambda x: x.amax(2), (0, 1, Refused, 2)),
    "amax over all": Case(lambda x: x.amax(), (Refused,) * 4),
    "var": Case(lambda x: x.var(-1), (0, 1, 2, Refused)),
    "std": Case(lambda x: x.std(0), (Refused, 0, 1, 2)),
    "norm": Case(lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True), (0, 1, 2, Refused)),
    "norm over all": Case(lambda x: torch.linalg.vector_norm(x), (Refused,) * 4),
    "logsumexp": Case(lambda x: x.logsumexp((-1,)), (0, 1, 2, Refused)),
    "mean over all": Case(lambda x: x.mean(), (Refused,) * 4),
    # normalisations and products
    "layer norm": Case(lambda x: F.layer_norm(x, x.shape[-1:]), (0, 1, 2, Refused)),
    "layer norm over two": Case(lambda x: F.layer_norm(x, x.shape[-2:]), (0, 1, Refused, Refused)),
    "rms norm": Case(lambda x: F.rms_norm(x, x.shape[-1:]), (0, 1, 2, Refused)),
    "linear": Case(lambda x: F.linear(x, _WEIGHT), (0, 1, 2, Refused)),
    "linear's weight": Case(lambda x: F.linear(_WEIGHT, x), (Refused, Refused), (6, 6)),
    "matmul": Case(lambda x: x @ _WEIGHT, (0, 1, 2, Refused)),
    "matmul on the right": Case(lambda x: _ROWS[:, :4] @ x, (0, 1, Refused, 3)),
    "matmul of a matrix": Case(lambda x: torch.ones(2, 3, 4, 4, dtype=x.dtype) @ x, (Refused, 3), (4, 6)),
    "matmul with itself": Case(lambda x: x @ x, (Refused,) * 4, (2, 3, 4, 4)),
    "bmm": Case(lambda x: torch.bmm(x, _WEIGHT.expand(2, 6, 6)), (0, 1, Refused), (2, 4, 6)),
    # shapes
    "view": Case(lambda x: x.view(2, 3, 4, 2, 3), (0, 1, 2, Refused)),
    "view that merges": Case(lambda x: x.view(6, 4, 6), (Refused, Refused, 1, 2)),
    "view that swaps sizes": Case(lambda x: x.view(2, 4, 3, 6), (0, Refused, Refused, 3)),
    "reshape to a vector": Case(lambda x: x.reshape(-1), (Refused,) * 4),
    "flatten": Case(lambda x: x.flatten(2), (0, 1, Refused, Refused)),
    "unflatten": Case(lambda x: x.unflatten(1, (3, 1)), (0, 1, 3, 4)),
    "expand": Case(lambda x: x.expand(5, 2, 3, 4, 6), (1, 2, 3, 4)),
    "permute": Case(lambda x: x.permute(2, 0, -1, 1), (1, 3, 0, 2)),
    "transpose": Case(lambda x: x.transpose(1, -1), (0, 3, 2, 1)),
    "unsqueeze": Case(lambda x: x.unsqueeze(1), (0, 2, 3, 4)),
    "unsqueeze at the end": Case(lambda x: x.unsqueeze(-1), SAME),
    "stack": Case(lambda x: torch.stack([x, x], 2), (0, 1, 3, 4)),
    "select": Case(lambda x: x.select(1, 2), (0, Refused, 1, 2)),
    "unbind": Case(lambda x: x.unbind(2), (0, 1, Refused, 2)),
    "squeeze": Case(lambda x: x.squeeze(1), (0, Refused, 1, 2), (2, 1, 4, 6)),
    "squeeze two": Case(lambda x: x.squeeze((0, 2)), (Refused, 0, Refused, 1), (1, 3, 1, 6)),
    "squeeze all": Case(lambda x: x.squeeze(), (Refused,) * 4, (2, 1, 4, 6)),
    "slice": Case(lambda x: x[..., 1:3], (0, 1, 2, Refused)),
    "slice with a step": Case(lambda x: x[:, ::2], (0, Refused, 2, 3)),
    "whole slice": Case(lambda x: torch.ops.aten.slice.Tensor(x, 1), SAME),
    # not known, or random
    "flip": Case(lambda x: x.flip(-1), (Refused,) * 4),
    "roll": Case(lambda x: x.roll(1, 2), (Refused,) * 4),
    "sort": Case(lambda x: x.sort(-1), (Refused,) * 4),
    "einsum": Case(lambda x: torch.einsum("bhnc,cd->bhnd", x, _WEIGHT), (Refused,) * 4),
    "convolution": Case(lambda x: F.conv2d(x, torch.ones(3, 3, 1, 1, dtype=x.dtype)), (Refused,) * 4),
    "dropout": Case(lambda x: F.dropout(x, 0.5, training=True), (Refused,) * 4),
    "rand like": Case(torch.rand_like, (Refused,) * 4),
}


def _input(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _nodes(case: Case) -> tuple[fx.Node, fx.Node]:
    """The op's node and its operand."""
    gm = capture_program(lambda given: case.op(given["x"]), {"x": _input(case.shape)}, {})
    operand = next(iter(gm.graph.nodes))
    readers = list(operand.users)
    assert len(readers) == 1, "one op, one node"
    return readers[0], operand


def _answer(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    try:
        return track(node, operand, axis)
    except UnsupportedGraphError:
        return Refused


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rules_say_where_dimensions_land(case: Case) -> None:
    node, operand = _nodes(case)
    assert tuple(_answer(node, operand, axis) for axis in range(len(case.shape))) == case.lands


def _results(case: Case, x: Tensor) -> list[Tensor]:
    result = case.op(x)
    return [result] if isinstance(result, Tensor) else list(result)  # type: ignore[call-overload]


KEPT_APART = [
    pytest.param(case, axis, id=f"{name}-{axis}")
    for name, case in CASES.items()
    for axis, lands in enumerate(case.lands)
    if lands is not Refused
]


@pytest.mark.parametrize(("case", "axis"), KEPT_APART)
def test_dimensions_that_are_kept_apart_are(case: Case, axis: int) -> None:
    """What is expected above is true: reordered along the axis, the results are; changed at one place, they
    change there alone."""
    x, lands = _input(case.shape), case.lands[axis]
    assert lands is not None
    order = torch.arange(case.shape[axis]).flip(0)
    changed = x.clone()
    changed.select(axis, 0).add_(1.0)
    before, reordered = _results(case, x), _results(case, x.index_select(axis, order))
    for one, two, three in zip(before, reordered, _results(case, changed), strict=True):
        assert one.shape[lands] == case.shape[axis]
        torch.testing.assert_close(two, one.index_select(lands, order), rtol=TOLERANCE, atol=TOLERANCE)
        rest = range(1, case.shape[axis])
        assert all(torch.equal(one.select(lands, i), three.select(lands, i)) for i in rest)


REASONS = {
    "softmax": "works along this dimension",
    "mean": "reduces over this dimension",
    "amax over all": "reduces over this dimension",
    "layer norm": "normalises over this dimension",
    "linear": "contracts this dimension",
    "matmul": "contracts this dimension",
    "reshape to a vector": "merges or splits this dimension",
    "unbind": "takes this dimension apart",
    "squeeze all": "is not known to act on each token alone",
    "slice": "takes a part of this dimension",
    "flip": "is not known to act on each token alone",
    "dropout": "draws random numbers for each token",
}


@pytest.mark.parametrize("name", REASONS)
def test_refusals_have_reasons(name: str) -> None:
    case = CASES[name]
    node, operand = _nodes(case)
    axis = max(i for i, lands in enumerate(case.lands) if lands is Refused)
    with pytest.raises(UnsupportedGraphError, match=f"{re.escape(str(node.target))} {REASONS[name]}"):
        track(node, operand, axis)
