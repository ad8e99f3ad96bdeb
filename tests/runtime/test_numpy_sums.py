"""Sums that NumPy makes of plain numbers do not end a graph, and nothing else changes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from toprovar_compiler.numpy_sums import plain_sums

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
    assert torch.equal(plain_sums([block])(whole)(*arguments), block(*arguments))


def test_code_that_is_not_traced_gets_what_numpy_gives(block: nn.Module) -> None:
    def look() -> None:
        assert np is not sys.modules["numpy"]
        assert type(np.sum([1, 2])) is np.int64
        assert np.sum([[1, 2], [3, 4]], axis=0).tolist() == [4, 6]
        assert np.asarray(3) + np.pi > 6

    plain_sums([nn.Sequential(block)])(look)()


def test_untraced_code_between_graphs_gets_what_numpy_gives(block: nn.Module) -> None:
    @torch.compiler.disable(recursive=False)
    def type_of_sum(numbers: list[int]) -> type:
        return type(np.sum(numbers))

    @torch.compile(backend="eager")
    def call(numbers: list[int]) -> type:
        return type_of_sum(numbers)

    assert plain_sums([block])(call)([1, 2]) is np.int64


def test_another_model_of_the_class_is_not_compiled_anew(block: nn.Module) -> None:
    graphs = CompileCounter()
    twin = torch.compile(SlicingBlock(), backend=graphs)
    arguments = (torch.zeros(9), [1, 2])
    first = twin(*arguments)
    before = graphs.frame_count
    plain_sums([block])(torch.compile(block, backend="eager"))(*arguments)
    assert torch.equal(twin(*arguments), first)
    assert graphs.frame_count == before > 0


def test_a_call_within_a_call_and_one_that_fails(block: nn.Module) -> None:
    around = plain_sums([block])

    def fail() -> None:
        around(lambda: None)()
        assert np is not sys.modules["numpy"]
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        around(fail)()


def test_calls_of_two_threads(block: nn.Module) -> None:
    around, entered, left = plain_sums([block]), threading.Event(), threading.Event()

    def wait() -> bool:
        entered.set()
        return left.wait(timeout=30)

    other = threading.Thread(target=around(wait))
    around(lambda: (other.start(), entered.wait(timeout=30)))()
    assert np is not sys.modules["numpy"], "the other call needs it still"
    left.set()
    other.join()


def test_blocks_whose_modules_do_not_use_numpy_change_nothing() -> None:
    call = torch.zeros
    assert plain_sums([nn.Linear(2, 2)])(call) is call
