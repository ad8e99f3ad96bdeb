"""Checks that tracing leaves behind go; nothing else does."""

from __future__ import annotations

from unittest import mock

import torch
from torch import fx

from tests.passes.graphs import count, rewritten, run, targets
from tests.passes.toy_block import Block, assert_equal, captured, make_inputs
from toprovar_compiler import capture as capture_module
from toprovar_compiler.passes.drop_assertions import DropAssertions

ASSERTION = torch.ops.aten._assert_tensor_metadata
CASTS = Block(before=lambda x, given: x.float().double())


def _with_assertions() -> fx.GraphModule:
    with mock.patch.object(capture_module, "DropAssertions"):
        return captured(CASTS, make_inputs())


def test_assertions_go_and_the_rest_stays() -> None:
    before = _with_assertions()
    after = rewritten(before, DropAssertions())
    assert count(before, ASSERTION) == 2
    assert count(after, ASSERTION) == 0
    left = {op: number for op, number in targets(before).items() if "_assert_tensor_metadata" not in op}
    assert targets(after) == left
    inputs = make_inputs()
    assert_equal(run(after, *inputs.values()), CASTS(inputs))


def test_the_number_of_checks_is_returned() -> None:
    gm = _with_assertions()
    assert DropAssertions()(gm) == 2
    assert DropAssertions()(gm) == 0


def test_a_captured_graph_has_none() -> None:
    """They would hide attention with casts from Inductor's own patterns."""
    assert count(captured(CASTS, make_inputs()), ASSERTION) == 0


def test_a_graph_without_checks_is_left_alone() -> None:
    gm = captured(Block(), make_inputs())
    before = gm.code
    assert DropAssertions()(gm) == 0
    gm.recompile()
    assert gm.code == before
