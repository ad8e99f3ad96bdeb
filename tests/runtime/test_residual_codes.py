"""Residual codes: zero for exactly the tokens that left the scale, and nothing else is touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toprovar_compiler
from tests.runtime.driver import Driver, codes
from tests.toy_generators import ClassVAR, Codebook, make
from toprovar_compiler.backend import Backend
from toprovar_compiler.residual_codes import watch_codes

KEPT = torch.tensor([[0, 2], [1, 3]])
MASK = [[1, 0, 1, 0], [0, 1, 0, 1]]


def _pruned_driver(rows: int = 4) -> Driver:
    """Two samples with two rows each; scale 1 is pruned to ``KEPT`` and waits for its codes."""
    driver = Driver()
    driver.scale(1, rows=rows)
    driver.session.see_codes(codes(2, 1))
    driver.scale(4, rows=rows, kept=KEPT)
    return driver


def test_the_mask_is_one_for_exactly_the_kept_tokens() -> None:
    mask = _pruned_driver().session.see_codes(codes(2, 4))
    assert mask is not None
    assert mask.tolist() == MASK


def test_a_scale_is_masked_once() -> None:
    session = _pruned_driver().session
    session.see_codes(codes(2, 4))
    assert session.see_codes(codes(2, 4)) is None


def test_the_mask_does_not_outlive_its_scale() -> None:
    driver = _pruned_driver()
    driver.scale(9, rows=4)
    assert driver.session.see_codes(codes(2, 4)) is None
    assert driver.session.see_codes(codes(2, 9)) is None


def test_codes_of_a_pruned_scale_that_were_not_seen_are_counted() -> None:
    driver = _pruned_driver()
    with pytest.warns(UserWarning, match="codes of a pruned scale were not seen"):
        driver.scale(9, rows=4)


def test_the_mask_does_not_outlive_its_generation() -> None:
    driver = _pruned_driver()
    driver.session.abandon()
    assert driver.session.see_codes(codes(2, 4)) is None


@pytest.mark.parametrize(
    "indices",
    [codes(2, 3), codes(3, 4), codes(4, 4), codes(1, 4), codes(2, 4)[0], codes(2, 4)[None], codes(0, 4)],
    ids=lambda indices: str(tuple(indices.shape)),
)
def test_indices_of_another_shape_are_no_codes(indices: Tensor) -> None:
    session = _pruned_driver().session
    assert session.see_codes(indices) is None
    mask = session.see_codes(codes(2, 4))
    assert mask is not None
    assert mask.tolist() == MASK


def test_indices_before_the_first_block_are_no_codes() -> None:
    session = Driver().session
    assert session.see_codes(codes(2, 1)) is None


def _watched(model: nn.Module, mask: Tensor | None) -> None:
    """Hook the embeddings with a session that answers ``mask`` to everything."""

    class Fixed:
        def see_codes(self, indices: Tensor, vectors: Tensor) -> Tensor | None:
            return mask

    backend = Backend(None, "default")
    backend.session = Fixed()  # type: ignore[assignment]
    watch_codes(model, backend)


def test_vectors_of_dropped_tokens_are_exactly_zero_and_kept_ones_bitwise_the_same() -> None:
    embedding = nn.Embedding(5, 3)
    indices = torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]])
    plain = embedding(indices)
    _watched(nn.Sequential(embedding), torch.tensor(MASK))
    zeroed = embedding(indices)
    for row, column in [(r, c) for r in range(2) for c in range(4)]:
        expected = plain[row, column] if MASK[row][column] else torch.zeros(3)
        assert torch.equal(zeroed[row, column], expected)


@pytest.mark.parametrize(
    "hide", [lambda m: (m,), lambda m: [m], lambda m: ({}, m)], ids=["tuple", "list", "mixed"]
)
def test_a_codebook_that_is_no_submodule_is_found(hide: Any) -> None:
    model, codebook = nn.Module(), Codebook(5, 3)
    model.hidden = hide(codebook)
    _watched(model, torch.zeros(1, 2))
    assert not codebook.embedding(torch.tensor([[1, 2]])).any()


def test_an_embedding_that_is_reached_twice_is_hooked_once() -> None:
    model, codebook = nn.Module(), Codebook(5, 3)
    model.inner, model.hidden = codebook, (codebook,)
    _watched(model, None)
    assert len(codebook.embedding._forward_hooks) == 1


class _Looks:
    """A codebook that indexes its table without an embedding module."""

    def __init__(self, weight: Tensor) -> None:
        self.embedding = lambda indices: weight[indices]


def test_zero_codes_reach_the_picture(
    class_var: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a token is dropped at the last scale, the picture's features stay as the scale found them."""
    model = class_var(keep_ratio=0.3, start_scale=4)
    before: list[Tensor] = []
    book = model.vae_proxy[0]
    add = book.add
    monkeypatch.setattr(book, "add", lambda f, idx, side: (before.append(f), add(f, idx, side))[1])
    after = model.autoregressive_infer_cfg(labels)
    unchanged = (after == before[-1]).all(1).flatten(1)
    assert torch.equal(unchanged, toprovar_compiler.kept_tokens(model)[4] == 0)


def test_class_and_level_embeddings_are_untouched(class_var: Any, labels: Tensor) -> None:
    model, plain = class_var(keep_ratio=0.3), make(ClassVAR)
    seen: list[Tensor] = []
    hook = model.class_emb.register_forward_hook(lambda module, arguments, out: seen.append(out))
    model.autoregressive_infer_cfg(labels)
    model.autoregressive_infer_cfg(labels)
    hook.remove()
    rows = torch.cat((labels, torch.full_like(labels, model.classes)))
    assert all(torch.equal(vectors, plain.class_emb(rows)) for vectors in seen)


@pytest.mark.parametrize("words", [4, 16, 64])
def test_a_prompt_as_long_as_a_scale_is_untouched(words: int, text_var: Any) -> None:
    model = text_var(keep_ratio=0.3, start_scale=2)
    prompt = torch.arange(2 * words).view(2, words) % 20
    expected = copy.deepcopy(model).encode(prompt)
    model.paint(prompt)
    assert torch.equal(model.encode(prompt), expected)


def test_decoding_after_a_generation_is_untouched(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    indices = torch.ones(2, 36, dtype=torch.long)
    assert model.vae_proxy[0].embedding(indices).abs().sum(-1).all()


def test_a_deep_copy_of_a_compiled_model_is_a_plain_model(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    copied = copy.deepcopy(model)
    assert torch.equal(
        copied.autoregressive_infer_cfg(labels), make(ClassVAR).autoregressive_infer_cfg(labels)
    )
    assert toprovar_compiler.summary(model).to_dict()["generations"] == 1


def test_codes_that_are_never_seen_are_counted_for_each_pruned_block(
    class_var: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = class_var(keep_ratio=0.3)
    weight = model.vae_proxy[0].embedding.weight
    monkeypatch.setattr(
        model.vae_proxy[0],
        "add",
        lambda f, i, side: Codebook.add(_Looks(weight), f, i, side),  # type: ignore[arg-type]
    )
    with pytest.warns(UserWarning, match="residual codes were not found"):
        model.autoregressive_infer_cfg(labels)
    fallbacks = toprovar_compiler.summary(model).to_dict()["fallbacks"]
    assert sum(fallbacks.values()) == 3 * 3
