"""What only a GPU can show of the Triton kernel: model shapes, repeatability, far offsets."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.oracle import check, quantised
from toprovar_compiler.kernels import ops  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.gpu

SHAPES = [
    (2, 16, 1024, 2521, 128),
    (2, 16, 307, 2521, 128),
    (2, 30, 256, 680, 64),
    (2, 4, 1024, 2130, 64),
    (2, 4, 64, 4000, 64),
    (1, 2, 4097, 1025, 80),
]


def _operands(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    batch, heads, queries, keys, size = shape
    lengths = (queries, keys, keys)
    return [
        quantised(batch, heads, n, size, dtype=dtype, seed=i, device="cuda") for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_model_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = _operands(shape, dtype)
    out, entropy = torch.ops.toprovar.flash_attention_entropy(q, k, v, None, 0.1)
    check(out, entropy, q, k, v, None, 0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_runs_repeat_bitwise(shape: tuple[int, ...]) -> None:
    q, k, v = _operands(shape, torch.bfloat16)
    first = torch.ops.toprovar.flash_attention_entropy(q, k, v, None, 0.1)
    for _ in range(50):
        again = torch.ops.toprovar.flash_attention_entropy(q, k, v, None, 0.1)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_offsets_beyond_int32() -> None:
    """Rows of K and V that start further than 2^31 elements into their storage."""
    keys, size = 40, 64
    wide = torch.empty(keys, (1 << 31) // 32, dtype=torch.bfloat16, device="cuda")
    k, v = wide[:, :size], wide[:, size : 2 * size]
    assert k.stride(0) * (keys - 1) > 1 << 31
    source = quantised(2, keys, size, dtype=torch.bfloat16, seed=1, device="cuda")
    k.copy_(source[0])
    v.copy_(source[1])
    q = quantised(1, 1, 17, size, dtype=torch.bfloat16, seed=0, device="cuda")
    far = torch.ops.toprovar.flash_attention_entropy(q, k[None, None], v[None, None], None, None)
    near = torch.ops.toprovar.flash_attention_entropy(q, source[:1, None], source[1:, None], None, None)
    assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))


def test_gate_matches_cpu() -> None:
    entropy = torch.rand(8, 1024, generator=torch.Generator().manual_seed(0))
    entropy[3, 5] = torch.nan
    on_cpu = torch.ops.toprovar.entropy_gate(entropy, 300)
    assert torch.equal(torch.ops.toprovar.entropy_gate(entropy.cuda(), 300).cpu(), on_cpu)
