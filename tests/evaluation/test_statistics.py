"""Confidence intervals and the Frechet distance against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image.fid import _compute_fid

from toprovar_compiler.evaluation.bootstrap import RESAMPLES, Interval, Resampler, per_prompt
from toprovar_compiler.evaluation.frechet import frechet_distances


def test_intervals_are_reproducible_and_depend_on_the_seed() -> None:
    values, wholes = np.random.default_rng(0).random(50), np.ones(50)
    first = Resampler(50, 3).ratio(values, wholes)
    assert Resampler(50, 3).ratio(values, wholes) == first
    assert Resampler(50, 4).ratio(values, wholes) != first


def test_interval_of_a_share_is_as_wide_as_theory_has_it() -> None:
    """For 400 prompts and half of them right: 1.96 standard errors, sqrt(p (1 - p) / n), to each side."""
    right = np.array([0.0, 1.0] * 200)
    found = Resampler(400, 0).ratio(right, np.ones(400))
    assert found.value == 0.5
    assert found.low is not None
    assert found.high is not None
    expected = 1.96 * np.sqrt(0.25 / 400)
    # a 2.5 % quantile of 1,000 draws has a relative standard error of about 4 % of that width
    assert 0.5 - found.low == pytest.approx(expected, rel=0.12)
    assert found.high - 0.5 == pytest.approx(expected, rel=0.12)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12), st.integers(0, 5))
def test_intervals_hold_their_values(values: list[float], seed: int) -> None:
    numbers = np.array(values)
    resampler = Resampler(len(values), seed)
    ones = np.ones(len(values))
    for found in (resampler.ratio(numbers, ones), resampler.ratio(ones, numbers), resampler.median(numbers)):
        assert found.value is not None
        slack = 1e-12 * found.value  # equal numbers, summed in two orders
        assert found.low - slack <= found.value <= found.high + slack


def test_resamples_are_paired() -> None:
    """A difference of what is equal has no width at all, whatever the width of each."""
    right = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    resampler = Resampler(5, 0)
    single = resampler.ratio(right, np.ones(5))
    assert single.low != single.high
    assert resampler.difference(right, right, np.ones(5)) == Interval(0.0, 0.0, 0.0)


def test_samples_of_a_prompt_stay_together() -> None:
    sums = per_prompt(3, np.array([0, 0, 2]), np.array([1.0, 2.0, 4.0]))
    assert sums.tolist() == [3, 0, 4]


def test_a_task_that_no_picture_has() -> None:
    found = Resampler(2, 0).ratio(np.zeros(2), np.zeros(2))
    assert found.to_json() == {"value": None, "low": None, "high": None, "reason": "no picture has it"}


def test_psnr_is_that_of_all_pixels() -> None:
    ours, theirs = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    errors = (ours - theirs).square().mean((1, 2, 3)).double().numpy()
    found = Resampler(3, 0).psnr(errors, np.ones(3))
    expected = peak_signal_noise_ratio(ours, theirs, data_range=1.0)
    # float32 against float64: the logarithm of a relative rounding error of 1e-6
    assert found.value == pytest.approx(float(expected), abs=1e-4)
    assert found.low < found.value < found.high
    assert Resampler(3, 0).psnr(np.zeros(3), np.ones(3)).reason == "every picture equals the dense one"


def test_psnr_of_some_equal_pictures_has_no_upper_bound() -> None:
    found = Resampler(2, 0).psnr(np.array([0.0, 0.01]), np.ones(2))
    assert found.high is None
    assert found.low == pytest.approx(20)


def weighting(counts: list[int]) -> torch.Tensor:
    return torch.tensor([counts], dtype=torch.float64)


def test_frechet_distance_against_torchmetrics() -> None:
    """Its own formula: eigenvalues of the unsymmetric product, of samples that are really repeated."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    theirs = 2 * torch.randn(40, 6, generator=generator, dtype=torch.float64) + 5
    counts = torch.randint(0, 3, (40,), generator=generator)
    (found,) = frechet_distances([ours], theirs, weighting(counts.tolist()))
    repeated = [features.repeat_interleave(counts, 0) for features in (ours, theirs)]
    moments = [moment for features in repeated for moment in (features.mean(0), features.T.cov())]
    # both are sums of 6 roots in float64
    assert float(found) == pytest.approx(float(_compute_fid(*moments)), rel=1e-9)


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    features = torch.randn(50, 4, dtype=torch.float64)
    shift = torch.tensor([3.0, 0, 4, 0], dtype=torch.float64)
    (found,) = frechet_distances([features + shift], features, torch.ones(1, 50))
    assert float(found) == pytest.approx(25, rel=1e-9)


def test_frechet_distance_of_fewer_pictures_than_features() -> None:
    """Covariances without full rank; the same pictures are at no distance, to the root of the rounding."""
    features = torch.randn(3, 20)
    found = frechet_distances([features, features + 1], features, torch.ones(2, 3))
    assert found.shape == (2, 2)
    assert found[0].max() < 1e-6
    assert found[1].numpy() == pytest.approx(20, rel=1e-6)


def test_centred_interval_holds_the_value_where_resamples_are_biased() -> None:
    drawn = np.linspace(2.0, 3.0, RESAMPLES)
    found = Resampler(2, 0).centred(1.0, drawn)
    assert found.low == pytest.approx(1 - 0.475)
    assert found.high == pytest.approx(1 + 0.475)
    assert Resampler(2, 0).centred(0.1, drawn).low == 0
