"""What all tests share: two threads, no state of torch.compile or toprovar left behind, GPU tests skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

THREADS = 2

if not torch.cuda.is_available():
    # Triton reads this when it defines a function, so it must be set before anything imports Triton, as
    # toprovar_compiler does.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Random examples that differ from run to run would make a test flaky; `--hypothesis-profile=explore` does so.
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("repeatable")


def pytest_configure() -> None:
    torch.set_num_threads(THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _first_generations_prune() -> Iterator[None]:
    """Without a calibration the first generation of a model is one to learn from, and runs in full.

    Tests of how tokens are pruned paint once, so for them models without a calibration rank by the mean
    entropy of all layers. What the default does is shown by ``tests/policies/test_online_entropy.py``.
    """
    from toprovar_compiler.policies import toprovar

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toprovar, "UNCALIBRATED", "layer-mean")
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_code() -> Iterator[None]:
    """Dynamo keeps graphs per code object, up to a limit that one test module must not use up for others."""
    import toprovar_compiler

    yield
    torch._dynamo.reset()
    toprovar_compiler.reset()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
