"""Repeated calls on a GPU: the bits of first calls, wherever the operands lie, on other streams and in graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.oracle import quantised
from toprovar_compiler.errors import GradientNotSupportedError
from toprovar_compiler.kernels import ops  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.gpu

# B, H, Hkv, Nq, Nk, D, dtype, bias: on an H100 the Hopper kernel on both plans and on parts of the keys, with and
# without a bias; the portable one on all keys and on parts.
CASES = [
    (2, 16, 4, 256, 521, 128, torch.bfloat16, None),
    (2, 16, 16, 1024, 1300, 64, torch.float16, None),
    (2, 4, 4, 64, 2130, 64, torch.bfloat16, None),
    (2, 4, 4, 64, 2130, 64, torch.bfloat16, torch.bool),
    (2, 16, 16, 256, 521, 128, torch.bfloat16, torch.float32),
    (2, 4, 4, 1, 4096, 128, torch.bfloat16, None),
    (1, 2, 1, 17, 100, 80, torch.float32, torch.float32),
]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    from toprovar_compiler.kernels import repeats

    repeats._kind.cache_clear()
    yield
    repeats._kind.cache_clear()


def operands(case: tuple[Any, ...], seed: int = 0) -> Inputs:
    batch, heads, kv_heads, queries, keys, size, dtype, of_bias = case
    lengths = ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    q, k, v = (
        quantised(batch, n, h, size, dtype=dtype, seed=seed + i, device="cuda").transpose(1, 2)
        for i, (n, h) in enumerate(lengths)
    )
    if of_bias is None:
        return q, k, v, None
    bias = quantised(queries, keys, dtype=torch.float32, seed=seed + 3, device="cuda")
    return q, k, v, bias > -0.5 if of_bias == torch.bool else bias


def attend(inputs: Inputs, scale: float | None = None) -> tuple[Tensor, Tensor]:
    out, entropy = torch.ops.toprovar.flash_attention_entropy(*inputs, scale)
    return out, entropy


def first(inputs: Inputs, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """A call that goes the whole way."""
    from toprovar_compiler.kernels import repeats

    repeats._kind.cache_clear()
    return attend(inputs, scale)


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(
        torch.equal(x, y) and (x.stride(), x.dtype) == (y.stride(), y.dtype) for x, y in zip(a, b, strict=True)
    )


@pytest.fixture
def launches_of_triton(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Launches that went through Triton's own binding of arguments."""
    from toprovar_compiler.kernels import hopper_attention, triton_kernels

    made: list[object] = []
    kernels = [triton_kernels.attention_entropy, triton_kernels.join_splits]
    if hopper_attention.hopper_unavailable(torch.device("cuda")) is None:
        kernels.append(hopper_attention._kernels().attention_entropy_hopper)

    def counting(run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            made.append(arguments)
            return run(*arguments, **options)

        return counted

    for kernel in kernels:
        monkeypatch.setattr(kernel, "run", counting(kernel.run))
    return made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_addresses_and_scales(case: tuple[Any, ...], launches_of_triton: list[object]) -> None:
    inputs = [operands(case, 10 * i) for i in range(3)]
    calls = [(one, scale) for one in inputs for scale in (None, 0.2, 0.0)]
    expected = [first(*each) for each in calls]
    before = len(launches_of_triton)
    assert before > 0
    for _ in range(3):
        for each, wanted in zip(calls, expected, strict=True):
            assert same(attend(*each), wanted)
    assert len(launches_of_triton) == before
    one = inputs[0]
    assert same(attend(one, -0.2), attend((-one[0], *one[1:]), 0.2))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_the_current_stream(case: tuple[Any, ...]) -> None:
    inputs, others = operands(case), operands(case, 10)
    wanted, of_others = first(inputs), first(others)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for x, y in zip(inputs, others, strict=True):
            if x is not None and y is not None:
                x.copy_(y)
        late = attend(inputs)  # waits for the copies, as it must
    assert same(attend(others), of_others)
    torch.cuda.current_stream().wait_stream(stream)
    assert same(late, of_others)
    assert not same(late, wanted)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_a_graph(case: tuple[Any, ...], launches_of_triton: list[object]) -> None:
    inputs, others = operands(case), operands(case, 10)
    wanted, of_others = first(inputs), first(others)
    before = len(launches_of_triton)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(inputs)
    assert len(launches_of_triton) == before
    graph.replay()
    assert same(captured, wanted)
    for x, y in zip(inputs, others, strict=True):
        if x is not None and y is not None:
            x.copy_(y)
    graph.replay()
    assert same(captured, of_others)


def test_memory_that_returns_in_another_shape() -> None:
    """No descriptor outlives the shape that it was made for."""
    store = quantised(1 << 22, dtype=torch.bfloat16, seed=0, device="cuda")

    def cut(batch: int, heads: int, queries: int, keys: int) -> Inputs:
        q, k, v = (
            store[start:][: batch * n * heads * 128].view(batch, n, heads, 128).transpose(1, 2)
            for start, n in ((0, queries), (1 << 20, keys), (1 << 21, keys))
        )
        return q, k, v, None

    views = [cut(1, 8, 256, 521), cut(1, 8, 300, 521), cut(1, 4, 512, 777), cut(2, 4, 256, 521)]
    expected = [first(view) for view in views]
    for _ in range(3):
        for view, wanted in zip(views, expected, strict=True):
            assert same(attend(view), wanted)


def test_gradients_are_refused_each_time() -> None:
    q, k, v, _ = operands(CASES[0])
    wanted = first((q, k, v, None))
    for _ in range(2):
        with torch.enable_grad():
            assert same(attend((q, k, v, None)), wanted)
            with pytest.raises(GradientNotSupportedError, match="torch.no_grad"):
                attend((q.detach().requires_grad_(), k, v, None))


def test_on_each_of_two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    here = operands(CASES[0])
    there = tuple(None if x is None else x.to("cuda:1") for x in here)
    wanted = first(here)
    for _ in range(3):
        out, entropy = attend(there)  # type: ignore[arg-type]
        assert out.device == entropy.device == torch.device("cuda", 1)
        assert same((out.cuda(0), entropy.cuda(0)), wanted)
        assert same(attend(here), wanted)
