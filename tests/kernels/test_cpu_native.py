"""The C++ kernel beyond the common sweep: tile unit, threads, layouts, and life without a compiler."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.kernels.oracle import check, quantised
from toprovar_compiler.errors import KernelUnavailableError
from toprovar_compiler.kernels import cpu_native, ops
from toprovar_compiler.kernels.cpu_attention import attention_entropy_cpu
from toprovar_compiler.kernels.cpu_native import SOURCE, Native, attention_entropy_native, native, source

TILE_KEYS = 256  # KEYS in cpu_products.h


def operands(
    queries: int, keys: int, size: int = 64, dtype: torch.dtype = torch.float32, heads: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = (queries, keys, keys)
    made = [quantised(2, heads, n, size, dtype=dtype, seed=i) for i, n in enumerate(lengths)]
    return made[0], made[1], made[2]


@pytest.fixture(params=["tiles", "vectors"])
def bfloat16_unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """bfloat16 on the tile unit where this CPU has one, and on vectors."""
    found = native()
    if request.param == "tiles" and not found.tiles:
        pytest.skip("this CPU has no tile unit")
    monkeypatch.setattr(cpu_native, "native", lambda: found._replace(tiles=request.param == "tiles"))
    return str(request.param)


@pytest.mark.usefixtures("bfloat16_unit")
@pytest.mark.parametrize("size", [1, 16, 31, 59, 64, 80, 129, 256])
def test_bfloat16(size: int) -> None:
    q, k, v = operands(33, TILE_KEYS + 41, size, torch.bfloat16)
    out, entropy = attention_entropy_native(q, k, v)
    check(out, entropy, q, k, v, None, size**-0.5)


@pytest.mark.usefixtures("bfloat16_unit")
def test_bfloat16_layouts_and_masks() -> None:
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in operands(35, 97, 80, torch.bfloat16))
    wide = torch.full((2, 2, 97, 118), torch.nan, dtype=torch.bfloat16)
    wide[..., ::2] = v[..., :59]
    bias = torch.arange(97) % 3 > 0
    out, entropy = attention_entropy_native(q, k, wide[..., ::2], bias, 0.1)
    check(out, entropy, q, k, v[..., :59], bias, 0.1)


@pytest.mark.usefixtures("bfloat16_unit")
def test_bfloat16_nan_and_masked_rows() -> None:
    q, k, v = operands(35, 97, dtype=torch.bfloat16)
    keep = torch.ones(35, 97, dtype=torch.bool)
    keep[7] = False
    clean_out, clean_entropy = attention_entropy_native(q, k, v, keep)
    assert not clean_out[:, :, 7].any()
    assert not clean_entropy[:, :, 7].any()
    q[:, :, 3] = torch.nan
    out, entropy = attention_entropy_native(q, k, v, keep)
    assert out[:, :, 3].isnan().all()
    assert entropy[:, :, 3].isnan().all()
    others = torch.arange(35) != 3
    assert torch.equal(out[:, :, others], clean_out[:, :, others])
    assert torch.equal(entropy[:, :, others], clean_entropy[:, :, others])


@pytest.mark.usefixtures("bfloat16_unit")
def test_scratch_memory_is_not_read_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *args, **kwargs: made(self, *args, **kwargs).fill_(torch.nan)
    )
    q, k, v = operands(17, TILE_KEYS + 1, 59, torch.bfloat16)
    out, entropy = attention_entropy_native(q, k, v)
    check(out, entropy, q, k, v, None, 59**-0.5)


@pytest.fixture(params=[8, 4])
def narrower_vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel as it compiles for AVX2, and for instruction sets that it knows nothing of."""
    if native().width < request.param:
        pytest.skip(f"this CPU has no vectors of {request.param} floats")
    unknown = ["-U__AVX512F__"] if request.param == 8 else ["-U__AVX512F__", "-U__AVX2__"]
    monkeypatch.setattr(cpu_native, "_FLAGS", (*cpu_native._FLAGS, *unknown))
    narrow = cpu_native._compile.__wrapped__()
    assert (narrow.width, narrow.tiles) == (request.param, False)
    monkeypatch.setattr(cpu_native, "native", lambda: narrow)


@pytest.mark.usefixtures("narrower_vectors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_vectors(dtype: torch.dtype) -> None:
    for queries, keys, size in ((1, 1, 1), (33, TILE_KEYS + 41, 59), (37, 97, 80), (791, 40, 16)):
        q, k, v = operands(queries, keys, size, dtype)
        out, entropy = attention_entropy_native(q, k, v)
        check(out, entropy, q, k, v, None, size**-0.5)


@pytest.mark.parametrize("keys", [TILE_KEYS - 1, TILE_KEYS, TILE_KEYS + 1, 2 * TILE_KEYS + 17])
def test_around_the_tiles_of_keys(keys: int) -> None:
    q, k, v = operands(5, keys)
    out, entropy = attention_entropy_native(q, k, v)
    check(out, entropy, q, k, v, None, 0.125)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_any_number_of_threads_gives_the_same() -> None:
    """More threads than blocks of rows, and rows of a head in more than one chunk."""
    q, k, v = operands(600, 40, 16)
    results = []
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        results.append(attention_entropy_native(q, k, v) + attention_entropy_native(q[:, :, :3], k, v))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_scale_may_be_negative_or_zero() -> None:
    q, k, v = operands(9, 33)
    for scale in (-0.125, 0.0):
        out, entropy = attention_entropy_native(q, k, v, None, scale)
        check(out, entropy, q, k, v, None, scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bias_of_another_type(dtype: torch.dtype) -> None:
    q, k, v = operands(9, 33)
    bias = quantised(2, 1, 1, 33, dtype=dtype, seed=9)
    out, entropy = attention_entropy_native(q, k, v, bias)
    check(out, entropy, q, k, v, bias.float(), 0.125)


def test_extreme_logits_in_later_tiles() -> None:
    """Masked and lowest logits first: the sums start anew with the first real one."""
    q, k, v = operands(9, 2 * TILE_KEYS)
    for lowest in (-math.inf, -1e38, -1e30):
        bias = torch.zeros(2 * TILE_KEYS)
        bias[:TILE_KEYS] = lowest
        out, entropy = attention_entropy_native(q, k, v, bias)
        check(out, entropy, q, k, v, bias, 0.125)


def test_an_infinite_logit_makes_its_row_nan() -> None:
    q, k, v = operands(9, 33)
    bias = torch.zeros(9, 33)
    bias[4, 5] = math.inf
    out, entropy = attention_entropy_native(q, k, v, bias)
    assert out[:, :, 4].isnan().all()
    assert entropy[:, :, 4].isnan().all()
    others = torch.arange(9) != 4
    assert out[:, :, others].isfinite().all()
    assert entropy[:, :, others].isfinite().all()


def test_source_is_one_text() -> None:
    """Inductor compiles and hashes one text: a change in a header must compile anew."""
    assert re.search(r'#include "', source()) is None
    for header in SOURCE.parent.glob("*.h"):
        assert header.read_text() in source()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which nothing is compiled yet and Inductor finds no compiler."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no compiler\nwas found")

    monkeypatch.setattr("torch._inductor.codecache.CppCodeCache.load_async", refuse)
    cpu_native._compile.cache_clear()
    yield
    monkeypatch.undo()
    cpu_native._compile.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler() -> None:
    """The operator runs in another form and says so once; asked for by name, the kernel is refused."""
    q, k, v = operands(9, 33)
    with pytest.warns(UserWarning, match=r"did not compile \(no compiler\); a slower form of it runs"):
        out, entropy = torch.ops.toprovar.flash_attention_entropy(q, k, v, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.ops.toprovar.flash_attention_entropy(q, k, v, None, None)
    slow_out, slow_entropy = attention_entropy_cpu(q, k, v)
    assert torch.equal(out, slow_out)
    assert torch.equal(entropy, slow_entropy)
    with pytest.raises(KernelUnavailableError, match=r"requires a C\+\+ compiler .* install g\+\+"):
        ops.implementation("cpu-native")
    assert native() == Native(None, 0, False, "the C++ kernel did not compile (no compiler)")
