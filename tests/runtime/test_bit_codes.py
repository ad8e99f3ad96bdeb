"""Codes that are bits: their vectors are zero for exactly the tokens that left the scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.driver import Driver
from toprovar_compiler.backend import Backend
from toprovar_compiler.residual_codes import watch_codes

KEPT = torch.tensor([[0, 2], [1, 3]])


class BitTokenizer(nn.Module):
    """Bits [B, 1, H, W, D] -> vectors [B, D, 1, H, W], as lookup-free quantisers make them."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.project_out = projection

    def vectors(self, bits: Tensor) -> Tensor:
        return self.project_out(bits * 2 - 1).movedim(-1, 1)


def _running(projection: nn.Module, tokens: int = 4) -> tuple[Driver, BitTokenizer]:
    """Two samples with two rows each; scale 1 is pruned to ``KEPT`` and waits for its codes."""
    driver, tokenizer, backend = Driver(), BitTokenizer(projection), Backend(None, "default")
    model = nn.Linear(2, 2)
    model.tokenizer = (tokenizer,)
    backend.session = driver.session
    watch_codes(model, backend)
    driver.scale(1, rows=4)
    tokenizer.vectors(torch.ones(2, 1, 1, 1, 3))
    driver.scale(tokens, rows=4, kept=KEPT)
    return driver, tokenizer


@pytest.mark.parametrize("projection", [nn.Identity(), nn.Linear(3, 5)], ids=["identity", "linear"])
def test_dropped_tokens_have_zero_vectors(projection: nn.Module) -> None:
    with torch.no_grad():
        driver, tokenizer = _running(projection)
        vectors = tokenizer.vectors(torch.ones(2, 1, 2, 2, 3))
    zero = (vectors == 0).all(1).flatten(1)
    assert zero.tolist() == [[False, True, False, True], [True, False, True, False]]
    assert driver.session.generation is not None
    assert driver.session.generation.rows_per_sample == 2


def test_a_token_may_stand_for_a_patch_of_codes() -> None:
    _, tokenizer = _running(nn.Identity())
    vectors = tokenizer.vectors(torch.ones(2, 1, 4, 4, 3))
    first = (vectors[0, 0, 0] != 0).int().tolist()
    assert first == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    second = (vectors[1, 0, 0] != 0).int().tolist()
    assert second == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_vectors_are_zeroed_once() -> None:
    _, tokenizer = _running(nn.Identity())
    bits = torch.ones(2, 1, 2, 2, 3)
    tokenizer.vectors(bits)
    assert tokenizer.vectors(bits).all()


@pytest.mark.parametrize(
    "sizes", [(2, 1, 3, 3, 3), (2, 2, 2, 2, 3), (3, 1, 2, 2, 3), (2, 4, 3), (2, 1, 8, 1, 3)], ids=str
)
def test_other_pictures_are_untouched(sizes: tuple[int, ...]) -> None:
    _, tokenizer = _running(nn.Identity())
    assert tokenizer.project_out(torch.ones(sizes)).all()
    assert not tokenizer.vectors(torch.ones(2, 1, 2, 2, 3)).all()


def test_nothing_happens_without_a_running_generation() -> None:
    driver, tokenizer = _running(nn.Identity())
    driver.session.abandon()
    assert tokenizer.vectors(torch.ones(2, 1, 2, 2, 3)).all()
