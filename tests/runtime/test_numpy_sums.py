"""Sums that NumPy makes of plain numbers do not end a graph, and nothing else changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toprovar_compiler.numpy_sums import keep_sums_plain

TABLE = torch.arange(100.0)


class SlicingBlock(nn.Module):
    """Takes its scale's part of a table that begins where the earlier scales' parts end."""

    def forward(self, x: Tensor, sides: list[int]) -> Tensor:
        begin = np.sum([side * side for side in sides])
        assert begin + len(x) <= len(TABLE)
        return x + TABLE[begin : begin + len(x)]


@pytest.fixture
def block() -> Iterator[nn.Module]:
    yield SlicingBlock()
    assert np is sys.modules["numpy"], "the name has to be NumPy's own again"


def test_the_block_is_one_graph(block: nn.Module) -> None:
    arguments = (torch.zeros(9), [1, 2])
    whole = torch.compile(block, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        whole(*arguments)
    undo = keep_sums_plain([block])
    assert torch.equal(whole(*arguments), block(*arguments))
    undo()


def test_code_that_is_not_traced_gets_what_numpy_gives(block: nn.Module) -> None:
    undo = keep_sums_plain([nn.Sequential(block)])
    assert np is not sys.modules["numpy"]
    assert type(np.sum([1, 2])) is np.int64
    assert np.sum([[1, 2], [3, 4]], axis=0).tolist() == [4, 6]
    assert np.asarray(3) + np.pi > 6
    undo()


def test_untraced_code_between_graphs_gets_what_numpy_gives(block: nn.Module) -> None:
    """Later graphs of another model of the class, which is compiled otherwise, were made for that type."""

    @torch.compiler.disable(recursive=False)
    def type_of_sum(numbers: list[int]) -> type:
        return type(np.sum(numbers))

    @torch.compile(backend="eager")
    def call(numbers: list[int]) -> type:
        return type_of_sum(numbers)

    undo = keep_sums_plain([block])
    found = call([1, 2])
    undo()
    assert found is np.int64


def test_the_last_of_two_compilations_undoes_it(block: nn.Module) -> None:
    one, other = keep_sums_plain([block]), keep_sums_plain([block])
    one()
    assert np is not sys.modules["numpy"]
    other()


def test_blocks_whose_modules_do_not_use_numpy_change_nothing() -> None:
    keep_sums_plain([nn.Linear(2, 2)])()
    assert nn.modules.linear.torch is torch
