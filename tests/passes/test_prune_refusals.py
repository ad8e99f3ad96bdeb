"""Graphs that cannot run on fewer tokens: refused with a reason, and left as they were."""

from __future__ import annotations

import pytest

from tests.passes.toy_block import (
    Block,
    make_inputs,
    typed,
)
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.prune_tokens import PruneTokens

NUMBERS = {
    "divided by N": Block(before=lambda x, g: x * (4.0 / x.shape[1])),
    "power of N": Block(before=lambda x, g: x * x.shape[1] ** -0.5),
    "N added": Block(after=lambda x, g: x + x.shape[1]),
}


@pytest.mark.parametrize("block", NUMBERS.values(), ids=NUMBERS)
def test_the_token_count_as_a_number_is_refused(block: Block) -> None:
    """It would be K where the model means N."""
    gm = typed(block, make_inputs())
    with pytest.raises(UnsupportedGraphError, match="uses the token count as a number"):
        PruneTokens()(gm)


def test_the_token_count_returned_is_refused() -> None:
    gm = typed(Block(extra=lambda h, g: [h.shape[1]]), make_inputs())
    with pytest.raises(UnsupportedGraphError, match="returns the token count as a number"):
        PruneTokens()(gm)


def test_a_refused_graph_is_unchanged() -> None:
    gm = typed(Block(after=lambda x, g: x.cumsum(1)), make_inputs())
    before = gm.code
    with pytest.raises(UnsupportedGraphError, match="cumsum"):
        PruneTokens()(gm)
    gm.recompile()
    assert gm.code == before
