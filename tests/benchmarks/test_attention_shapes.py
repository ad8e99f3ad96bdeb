"""Shapes of the attention benchmark against what is published of the models."""

from __future__ import annotations

import pytest

from benchmarks.attention_shapes import GPU_SHAPES, MODELS, distinct_shapes, flops, scales
from benchmarks.peaks import peak_tflops


@pytest.mark.parametrize(
    ("model", "count", "last"),
    [
        ("Infinity-2B", 13, (2, 16, 4096, 10521, 128)),
        ("Infinity-8B", 13, (2, 28, 4096, 10521, 128)),
        ("VAR-d36 512", 10, (2, 36, 1024, 2240, 64)),
        ("HART", 14, (2, 24, 4096, 9451, 64)),
    ],
)
def test_scales_of_a_model(model: str, count: int, last: tuple[int, ...]) -> None:
    shapes = scales(MODELS[model])
    assert (len(shapes), shapes[-1]) == (count, last)
    assert shapes[0] == (2, MODELS[model].heads, 1, 1, MODELS[model].size)
    keys = 0
    for _, _, queries, seen, _ in shapes:
        keys += queries
        assert seen == keys


def test_every_shape_is_measured_once() -> None:
    shapes = distinct_shapes()
    assert len(shapes) == len(set(shapes))
    assert set(shapes) == set(GPU_SHAPES).union(*(scales(model) for model in MODELS.values()))


def test_flops_are_those_of_two_products() -> None:
    assert flops((2, 3, 5, 7, 11)) == 2 * (2 * 3) * (2 * 5 * 7 * 11)


def test_an_unfamiliar_card_has_no_peak() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989.4
    assert peak_tflops("NVIDIA H100 80GB HBM4") is None
