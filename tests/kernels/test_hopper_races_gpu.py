"""What only repeating the Hopper kernel on a GPU can show: races, repeatability, CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_hopper_gpu import DTYPES, SHAPES, attend, each_plan, needs_hopper, operands

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_hopper")]
__all__ = ["each_plan", "needs_hopper"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [SHAPES[4], SHAPES[5], (2, 8, 8, 1024, 1300, 64), (2, 8, 8, 1024, 1300, 128)]
)
@pytest.mark.parametrize("late", [False, True], ids=["plain", "repaired"])
def test_no_races_in_250_repeats(shape: tuple[int, ...], late: bool, dtype: torch.dtype) -> None:
    q, k, v = operands(shape, dtype)
    if late:
        q[:, :, 77::200, 0], k[..., 0] = 40.0, 0.0
        k[:, :, -1, 0] = 40.0
    first = attend(q, k, v)
    assert first[0].isfinite().all()
    cache = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
    for i in range(250):
        if i % 5 == 0:
            cache.zero_()  # tiles then come from memory, in another order
        again = attend(q, k, v)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), f"repeat {i}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_runs_repeat_bitwise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = operands(shape, dtype)
    first = attend(q, k, v)
    for _ in range(50):
        assert all(torch.equal(a, b) for a, b in zip(attend(q, k, v), first, strict=True))


def test_in_a_cuda_graph() -> None:
    q, k, v = operands(SHAPES[4], torch.bfloat16)
    direct = attend(q, k, v)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(q, k, v)
    q.neg_()
    graph.replay()
    assert not torch.equal(captured[0], direct[0])
    q.neg_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, direct, strict=True))
