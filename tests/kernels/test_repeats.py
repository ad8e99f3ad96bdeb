"""Which calls are made again as they were, and which go the whole way; needs no GPU and launches nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from toprovar_compiler.errors import GradientNotSupportedError, KernelInputError
from toprovar_compiler.kernels import direct_launch, repeats
from toprovar_compiler.kernels.direct_launch import LOG2_E, Attended, DirectLaunch, Launched, Operand, encoded
from toprovar_compiler.kernels.repeats import kind_of, repeat
from toprovar_compiler.kernels.triton_attention import Tiles, attention_entropy_triton

STREAM = 77
TILES = Tiles(16, 16, 4, 1)


class Direct(NamedTuple):
    """A direct launch that was asked for."""

    programs: int
    stream: int
    arguments: tuple[Any, ...]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Direct]]:
    """Direct launches are noted; the whole way runs in Triton's interpreter."""
    made: list[Direct] = []

    def run(*launch: Any) -> None:
        made.append(Direct(*launch))

    monkeypatch.setattr(repeats, "direct", lambda compiled: DirectLaunch(run, lambda index: STREAM, ()))
    repeats._kind.cache_clear()
    yield made
    repeats._kind.cache_clear()


def operands(queries: int = 5, keys: int = 40, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, n, 4, size).transpose(1, 2) for n in (queries, keys, keys))
    return q, k, v


def call(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None, splits: int = 1
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return attention_entropy_triton(q, k, v, bias, scale, TILES, splits)


def test_the_second_call_of_a_kind_is_launched_directly(launched: list[Direct]) -> None:
    first = call(*operands())
    assert launched == []
    q, k, v = operands()
    out, entropy = call(q, k, v)
    for new, old in zip((out, entropy), first, strict=True):
        assert (new.shape, new.stride(), new.dtype) == (old.shape, old.stride(), old.dtype)
    (made,) = launched
    assert (made.programs, made.stream) == (8, STREAM)
    addresses = [x.data_ptr() for x in (q, k, v, entropy, out, entropy, entropy, entropy)]
    assert list(made.arguments[:8]) == addresses
    strides = (*q.stride(), *k.stride(), *v.stride(), *out.stride(), 0, 0, 0, 0)
    assert made.arguments[8:33] == (*strides, 4, 1, 5, 40, 1)
    assert made.arguments[33] == 0.25 * LOG2_E
    assert made.arguments[34:] == (16, 16, 16, 16, 16, 16, False, 0, "ieee")


def test_parts_are_joined(launched: list[Direct]) -> None:
    call(*operands(), splits=2)
    out, entropy = call(*operands(), splits=2)
    attend, join = launched
    assert (attend.programs, join.programs, join.stream) == (16, 8, STREAM)
    assert attend.arguments[4:6] == join.arguments[2:4] == (out.data_ptr(), entropy.data_ptr())
    assert attend.arguments[6:8] == join.arguments[:2]
    assert join.arguments[4:] == (*out.stride(), 4, 5, 40, 2, 16, 16, 16)


def test_a_bias_is_read_where_it_is(launched: list[Direct]) -> None:
    for bias in (torch.zeros(40), torch.ones(5, 40, dtype=torch.bool)):
        call(*operands(), bias)
        moved = bias.clone()
        call(*operands(), moved)
        assert launched.pop().arguments[3] == moved.data_ptr()


def test_scales_are_those_of_each_call(launched: list[Direct]) -> None:
    call(*operands(), scale=0.5)
    for scale in (0.5, 0.1, 0.0, 3):
        call(*operands(), scale=scale)
        assert launched.pop().arguments[33] == scale * LOG2_E
    call(*operands(), scale=-0.5)  # of queries with the other sign
    assert launched.pop().arguments[33] == 0.5 * LOG2_E


def changes() -> dict[str, Any]:
    q, k, v = operands()
    wide = torch.randn(2, 5, 4, 17)
    return {
        "more queries": (*operands(queries=6), None),
        "more keys": (*operands(keys=41), None),
        "head size": (*operands(size=32), None),
        "layout": (q.contiguous(), k, v, None),
        "layout of keys": (q, k.contiguous(), v, None),
        "layout of values": (q, k, v.contiguous(), None),
        "dtype": (q.half(), k.half(), v.half(), None),
        "alignment": (torch.randn(2 * 5 * 4 * 16 + 1)[1:].view(2, 5, 4, 16).transpose(1, 2), k, v, None),
        "row stride": (wide[..., :16].transpose(1, 2), k, v, None),
        "fewer key heads": (q, k[:, :2], v[:, :2], None),
        "bias": (q, k, v, torch.zeros(40)),
        "bias of rows": (q, k, v, torch.zeros(5, 40)),
        "bias in another layout": (q, k, v, torch.zeros(40, 5).T),
        "bool bias": (q, k, v, torch.ones(40, dtype=torch.bool)),
        "bias at another alignment": (q, k, v, torch.zeros(41)[1:]),
    }


@pytest.mark.parametrize("change", sorted(changes()))
def test_whatever_a_program_depends_on_makes_a_kind(change: str, launched: list[Direct]) -> None:
    call(*operands())
    for other in ("bias", "bias of rows"):
        if other != change:
            call(*changes()[other])
    arguments = changes()[change]
    call(*arguments)
    assert launched == []
    call(*arguments)
    assert len(launched) == 1


def test_what_the_caller_chose_makes_a_kind() -> None:
    q, k, v = operands()
    assert kind_of(q, k, v, None, TILES, 1) is kind_of(q, k, v, None, TILES, 1)
    assert kind_of(q, k, v, None, TILES, 1) is not kind_of(q, k, v, None, TILES, 2)
    assert kind_of(q, k, v, None, TILES, 1) is not kind_of(q, k, v, None, None, None)


@pytest.mark.parametrize("which", range(4))
def test_gradients_are_refused_each_time(which: int, launched: list[Direct]) -> None:
    arguments = [*operands(), torch.zeros(40)]
    for _ in range(2):
        attention_entropy_triton(*arguments, None, TILES, 1)
    assert len(launched) == 1
    arguments[which] = arguments[which].detach().requires_grad_()
    with pytest.raises(GradientNotSupportedError, match="torch.no_grad"):
        attention_entropy_triton(*arguments, None, TILES, 1)
    assert len(launched) == 1
    call(*arguments)
    assert len(launched) == 2


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_wrong_scale_is_refused_each_time(scale: float, launched: list[Direct]) -> None:
    for _ in range(2):
        call(*operands())
    with pytest.raises(KernelInputError, match="finite scale"):
        call(*operands(), scale=scale)
    assert len(launched) == 1


def test_a_watched_launch_is_tritons(launched: list[Direct], monkeypatch: pytest.MonkeyPatch) -> None:
    call(*operands())
    monkeypatch.setattr(repeats, "watched", lambda runtime: True)
    call(*operands())
    assert launched == []


def test_outputs_at_odd_addresses_are_tritons(launched: list[Direct], monkeypatch: pytest.MonkeyPatch) -> None:
    """No allocator gives such addresses as the alignment that is asked for here."""
    monkeypatch.setattr(repeats, "ALIGNMENT", 1 << 60)
    inputs = operands()
    for _ in range(2):
        call(*inputs)
    assert launched == []


def test_without_a_direct_launch_every_call_goes_the_whole_way() -> None:
    repeats._kind.cache_clear()
    for splits in (1, 2):
        first, second = (call(*operands(), splits=splits) for _ in range(2))
        assert kind_of(*operands(), None, TILES, splits).again is None
        assert first[0].shape == second[0].shape


def test_descriptors_are_encoded_once_an_operand_and_address(
    launched: list[Direct], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    encodings: list[Any] = []

    def encode(descriptor: Any, encoding: Any) -> list[Any]:
        encodings.append((descriptor, encoding))
        return [descriptor, encoding]

    monkeypatch.setattr(driver, "make_tensordesc_arg", encode)
    run = DirectLaunch(lambda *launch: launched.append(Direct(*launch)), lambda index: STREAM, ("eq", "ek", "ev"))
    monkeypatch.setattr(repeats, "direct", lambda compiled: run)
    q, k, v = operands()
    out, entropy = torch.empty_like(q), torch.empty(q.shape[:3])
    descriptors = tuple(lambda address, name=name: (name, address) for name in "qkv")
    done = Attended(Launched(None, 3, (1, 2.0, 3)), 1, 1, None, descriptors)
    again = repeat(done, q, out, entropy)
    assert again is not None
    with torch.no_grad():
        for _ in range(2):
            assert again(q, k, v, None, 0.5) is not None
    of_inputs = [x for n, t in zip("qkv", (q, k, v), strict=True) for x in ((n, t.data_ptr()), f"e{n}")]
    assert list(launched[-1].arguments[:6]) == of_inputs
    assert launched[-1].arguments[-3:] == (1, 0.5 * LOG2_E, 3)
    assert len(encodings) == 3
    other = Operand(descriptors[0], "other")
    assert encoded(other, q.data_ptr()) == (("q", q.data_ptr()), "other")
    direct_launch.encoded.cache_clear()
