"""The Frechet distance between two sets of features, as in FID, under many weightings of the samples."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

FEWEST_PICTURES = 2
"""A covariance of fewer is undefined."""
_NUMBERS_AT_ONCE = 2**21  # of float64: bounds what the products of a group of weightings take


def frechet_distances(sets: Sequence[Tensor], reference: Tensor, weights: Tensor) -> Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of each set to the reference, for each weighting.

    The trace of the root is the sum of the roots of the eigenvalues of R C1 R with R = C2^(1/2): a
    symmetric matrix that has those of C1 C2.

    Args:
        sets: features [N, F] each; sample i of all sets and of the reference belongs to the same prompt.
        reference: [N, F].
        weights: [R, N], how often each sample counts; each row sums to at least 2.

    Returns:
        [len(sets), R] float64, not below 0.
    """
    centre = reference.to(torch.float64).mean(0)
    ours = [features.to(torch.float64) - centre for features in sets]
    theirs = reference.to(torch.float64) - centre
    groups = weights.to(theirs).split(max(1, _NUMBERS_AT_ONCE // theirs.numel()))
    threads = torch.get_num_threads()
    # Eigenvalues of small matrices: a thread each for many of them, instead of many threads for each, which
    # then wait for one another; and sums that do not depend on the number of threads.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = list(pool.map(functools.partial(_distances, ours, theirs), groups))
    finally:
        torch.set_num_threads(threads)
    return torch.cat(parts, dim=1).clamp_min(0)


def _distances(sets: Sequence[Tensor], reference: Tensor, weights: Tensor) -> Tensor:
    true_mean, true_covariance = _moments(reference, weights)
    values, vectors = torch.linalg.eigh(true_covariance)
    root = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT
    true_trace = true_covariance.diagonal(dim1=1, dim2=2).sum(-1)
    distances = []
    for features in sets:
        mean, covariance = _moments(features, weights)
        product = torch.linalg.eigvalsh(root @ covariance @ root).clamp_min(0).sqrt().sum(-1)
        traces = covariance.diagonal(dim1=1, dim2=2).sum(-1) + true_trace
        distances.append((mean - true_mean).square().sum(-1) + traces - 2 * product)
    return torch.stack(distances)


def _moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means [R, F] and unbiased covariances [R, F, F]; features near the origin lose no digits."""
    total = weights.sum(-1)[:, None, None]
    mean = weights @ features / total[:, 0]
    squares = (features.T * weights[:, None]) @ features
    return mean, (squares - total * mean[:, :, None] * mean[:, None]) / (total - 1)
