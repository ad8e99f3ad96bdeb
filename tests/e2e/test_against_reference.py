"""Pruned generation equals an independent eager reference, tokens and pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.e2e.reference import Reference, shares
from tests.toy_generators import ClassVAR, HandWrittenVAR, TextVAR, make

MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "scale-exit": ({}, {"exits": True}),
    "scale-exit, all keys": ({"pruned_keys": "computed"}, {"exits": True, "all_keys": True}),
    "scale-exit, Global layers": ({"layer_budgets": [0, 1, 0]}, {"exits": True, "in_full": (0, 2)}),
    "bypass": ({"restoration": "bypass", "entropy_source": "same-layer"}, {"exits": False}),
    "bypass, all keys": (
        {"restoration": "bypass", "entropy_source": "same-layer", "pruned_keys": "computed"},
        {"exits": False, "all_keys": True},
    ),
}


def _check(wrapped: Any, alone: list[tuple[Reference, Tensor]], together: Tensor, tokens: list[int]) -> None:
    """A batch against references of its pictures: the same tokens exactly, the picture up to rounding."""
    kept = toprovar_compiler.kept_tokens(wrapped)
    sizes = dict(enumerate(tokens))
    for i, (reference, picture) in enumerate(alone):
        expected = shares(reference, sizes, len(reference.blocks))
        assert expected
        assert {scale: kept[scale][i].tolist() for scale in kept} == {
            scale: pytest.approx(share) for scale, share in expected.items()
        }
        torch.testing.assert_close(together[i : i + 1], picture)


def _class_references(toy: Any, labels: Tensor, start: int, ratio: float, **mode: Any) -> list[Any]:
    alone = []
    for i in range(len(labels)):
        reference = Reference(toy.blocks, toy.vae_proxy[0].embedding, start=start, ratio=ratio, **mode)
        with reference.installed():
            alone.append((reference, toy.autoregressive_infer_cfg(labels[i : i + 1])))
    return alone


@pytest.mark.parametrize("mode", ["scale-exit", "scale-exit, Global layers", "bypass"])
def test_compiled_class_model(mode: str, toy: Any, labels: Tensor) -> None:
    options, reference = MODES[mode]
    wrapped = torch.compile(toy, backend="toprovar", options={"keep_ratio": 0.3, "start_scale": 2, **options})
    together = wrapped.autoregressive_infer_cfg(labels)
    alone = _class_references(toy, labels, 2, 0.3, **reference)
    _check(wrapped, alone, together, [side * side for side in toy.patch_nums])


@pytest.fixture(scope="module")
def other_toys() -> dict[type, Any]:
    return {kind: make(kind, dtype=torch.float64) for kind in (ClassVAR, HandWrittenVAR, TextVAR)}


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize("ratio", [0.15, 0.5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [ClassVAR, HandWrittenVAR])
def test_class_models_in_every_mode(
    kind: type, mode: str, ratio: float, other_toys: dict[type, Any], labels: Tensor
) -> None:
    options, reference = MODES[mode]
    model = other_toys[kind]
    wrapped = torch.compile(
        model, backend="toprovar", options={"keep_ratio": ratio, "start_scale": 2, **options}
    )
    together = wrapped.autoregressive_infer_cfg(labels)
    alone = _class_references(model, labels, 2, ratio, **reference)
    _check(wrapped, alone, together, [side * side for side in model.patch_nums])


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize("mode", MODES)
def test_text_model_with_rope_and_a_cache_that_is_passed_along(
    mode: str, other_toys: dict[type, Any]
) -> None:
    options, reference_mode = MODES[mode]
    model, words = other_toys[TextVAR], torch.tensor([[1, 2, 3], [4, 5, 6]])
    if "layer_budgets" in options:
        options = {"layer_budgets": options["layer_budgets"][: len(model.layers)]}
    wrapped = torch.compile(
        model, backend="toprovar", options={"keep_ratio": 0.3, "start_scale": 3, **options}
    )
    together = wrapped.paint(words)
    alone = []
    for i in range(len(words)):
        reference = Reference(
            model.layers, model.codebook.embedding, start=3, ratio=0.3, shared=(2,), **reference_mode
        )
        with reference.installed():
            alone.append((reference, model.paint(words[i : i + 1])))
    _check(wrapped, alone, together, [side * side for side in model.sides])
