"""Metrics of single pictures: known values, and regions that add up to the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from toprovar_compiler.evaluation.picture_metrics import CONTOUR_PIXELS, REGIONS, compare, regions_of

SIDE = 32


@pytest.fixture
def square() -> Tensor:
    """A sprite of 16 x 16 pixels in the middle of a picture of 32 x 32, [1, 32, 32] bool."""
    sprite = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    sprite[:, 8:24, 8:24] = True
    return sprite


def test_regions_of_a_square(square: Tensor) -> None:
    inside, contours, background = regions_of(square)
    reach = CONTOUR_PIXELS
    assert inside.sum() == (16 - 2 * reach) ** 2
    assert background.sum() == SIDE**2 - (16 + 2 * reach) ** 2
    assert (inside.int() + contours.int() + background.int() == 1).all()
    assert inside[0, 8 + reach : 24 - reach, 8 + reach : 24 - reach].all()


def test_a_sprite_at_the_edge_has_no_contour_there() -> None:
    sprite = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    sprite[:, :, :16] = True
    inside, contours, _ = regions_of(sprite)
    assert inside[0, :, : 16 - CONTOUR_PIXELS].all()
    assert contours[0, :, 16 - CONTOUR_PIXELS : 16 + CONTOUR_PIXELS].all()
    assert contours.sum() == SIDE * 2 * CONTOUR_PIXELS


def test_pictures_without_and_full_of_sprites() -> None:
    for value, region in ((False, 2), (True, 0)):
        masks = regions_of(torch.full((1, SIDE, SIDE), value))
        assert masks.sum((1, 2, 3)).tolist() == [SIDE**2 if place == region else 0 for place in range(3)]


def test_an_error_in_one_region_is_found_there_alone(square: Tensor) -> None:
    dense = torch.full((1, 3, SIDE, SIDE), 0.5)
    inside = regions_of(square)[0]
    picture = dense + 0.25 * inside[:, None]
    (record,) = compare(picture, dense, square)
    squares = {name: record["regions"][name]["squares"] for name in REGIONS}
    # powers of two: exact
    assert squares == {"inside": 100 * 0.0625, "contours": 0, "background": 0}
    assert record["mse"] == 100 * 0.0625 / SIDE**2


def test_regions_add_up_to_the_whole(square: Tensor) -> None:
    dense, picture = torch.rand(2, 3, SIDE, SIDE), torch.rand(2, 3, SIDE, SIDE)
    for record in compare(picture, dense, square.repeat(2, 1, 1)):
        regions = record["regions"].values()
        assert sum(region["pixels"] for region in regions) == SIDE**2
        assert sum(r["squares"] for r in regions) / SIDE**2 == pytest.approx(record["mse"], rel=1e-12)
        assert sum(r["similarity"] for r in regions) / SIDE**2 == pytest.approx(record["ssim"], rel=1e-12)


def test_values_of_each_picture_are_its_own() -> None:
    dense, pictures = torch.rand(3, 3, SIDE, SIDE), torch.rand(3, 3, SIDE, SIDE)
    together = compare(pictures, dense, None)
    for place, record in enumerate(together):
        alone = structural_similarity_index_measure(
            pictures[place : place + 1], dense[place : place + 1], data_range=1.0
        )
        # means of the same float32 map, in float32 there and in float64 here
        assert record["ssim"] == pytest.approx(float(alone), abs=1e-5)
        assert "regions" not in record


@pytest.mark.parametrize(("side", "ssim", "ms_ssim"), [(5, None, None), (175, 1, None), (176, 1, 1)])
def test_small_pictures_have_fewer_metrics(side: int, ssim: float | None, ms_ssim: float | None) -> None:
    picture = torch.rand(1, 3, side, side)
    energy = pytest.approx(float(picture.double().var(correction=0)), rel=1e-12)
    assert compare(picture, picture, None) == [{"mse": 0, "energy": energy, "ssim": ssim, "ms_ssim": ms_ssim}]


def test_noise_lowers_all_three() -> None:
    dense = torch.rand(1, 3, 176, 176)
    values = [
        compare((dense + strength * torch.randn_like(dense)).clamp(0, 1), dense, None)[0]
        for strength in (0.05, 0.2)
    ]
    assert values[0]["mse"] < values[1]["mse"]
    assert values[0]["ssim"] > values[1]["ssim"]
    assert values[0]["ms_ssim"] > values[1]["ms_ssim"]


def test_small_pictures_with_regions() -> None:
    picture = torch.rand(1, 3, 5, 5)
    (record,) = compare(picture, picture, torch.ones(1, 5, 5, dtype=torch.bool))
    assert record["regions"]["inside"] == {"pixels": 25, "squares": 0, "similarity": None}
