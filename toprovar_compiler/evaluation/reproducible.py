"""The same numbers from every process: kernels that no clock has chosen."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch.utils import deterministic

_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Inside, torch's deterministic algorithms run; one without such a form warns.

    On a GPU, Inductor otherwise times several forms of a reduction and takes the fastest. They round apart,
    another process may find another one the fastest, and a code that is sampled on the edge falls to the
    other side. Its own setting for this (``TORCHINDUCTOR_DETERMINISTIC``) does not last: Dynamo resets it to
    that of the deterministic algorithms with every frame that it compiles.

    Speed is to be measured outside: timing kernels is what makes Inductor fast.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    # cuBLAS reads it when it is first used; without it torch warns of every matrix product.
    os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing here reads what was not written.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
