"""The operators as torch sees them: schema, fakes, vmap, gradients, wrong inputs, registration."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from tests.kernels.oracle import quantised
from toprovar_compiler.errors import GradientNotSupportedError, KernelInputError, KernelUnavailableError
from toprovar_compiler.kernels import ops
from toprovar_compiler.kernels.reference import attention_entropy_reference

attention = torch.ops.toprovar.flash_attention_entropy
gate = torch.ops.toprovar.entropy_gate


def operands(
    batch: int = 2, heads: int = 4, kv_heads: int = 2, queries: int = 5, keys: int = 7, size: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((batch, heads, queries), (batch, kv_heads, keys), (batch, kv_heads, keys))
    made = [quantised(*shape, size, dtype=torch.float32, seed=i) for i, shape in enumerate(shapes)]
    return made[0], made[1], made[2]


def biases() -> dict[str, Tensor | None]:
    return {
        "none": None,
        "bool": torch.arange(35).reshape(5, 7) % 3 > 0,
        "float": quantised(1, 4, 1, 7, dtype=torch.float32, seed=9),
    }


@pytest.mark.parametrize("bias", ["none", "bool", "float"])
def test_opcheck_attention(bias: str) -> None:
    torch.library.opcheck(attention, (*operands(), biases()[bias], 0.3))


def test_opcheck_gate() -> None:
    torch.library.opcheck(gate, (torch.rand(3, 9), 4))


def test_schemas_are_those_that_the_passes_build() -> None:
    assert str(attention.default._schema) == (
        "toprovar::flash_attention_entropy(Tensor q, Tensor k, Tensor v, Tensor? bias, float? scale)"
        " -> (Tensor, Tensor)"
    )
    assert str(gate.default._schema) == "toprovar::entropy_gate(Tensor entropy, SymInt keep) -> Tensor"


def _odd_layouts() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    q, k, v = operands()
    wide = operands(size=32)
    return {
        "contiguous": (q, k, v),
        "projection": tuple(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)),  # type: ignore[dict-item]
        "sliced": tuple(t[..., ::2] for t in wide),  # type: ignore[dict-item]
        "expanded": (q[:1].expand(2, -1, -1, -1), k, v[..., :1].expand(-1, -1, -1, 16)),
        "one query": (q[:, :, :1], k, v),
        "no query": (q[:, :, :0], k, v),
        "no key": (q, k[:, :, :0], v[:, :, :0]),
        "narrow value": (q, k, v[..., :3]),
        "double": (q.double(), k.double(), v.double()),
        "half": (q.half(), k.half(), v.half()),
    }


@pytest.mark.parametrize("layout", sorted(_odd_layouts()))
def test_fake_agrees_with_real(layout: str) -> None:
    real_inputs = _odd_layouts()[layout]
    real = attention(*real_inputs, None, None)
    with FakeTensorMode() as mode:
        fake = attention(*(mode.from_tensor(t) for t in real_inputs), None, None)
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
    assert real[0].transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("duck_shape", [True, False])
def test_fake_keeps_symbols(duck_shape: bool) -> None:
    """Symbolic lengths stay symbolic: one graph serves every scale."""
    env = ShapeEnv(duck_shape=duck_shape)
    q, k, v = operands(queries=11, keys=23)
    with FakeTensorMode(shape_env=env) as mode:
        symbolic = [mode.from_tensor(t, static_shapes=False) for t in (q, k, v)]
        out, entropy = attention(*symbolic, None, None)
        index = gate(entropy.flatten(0, 1), symbolic[0].shape[2] - 3)
    assert out.shape[2] == symbolic[0].shape[2]
    assert isinstance(out.shape[2], torch.SymInt)
    assert isinstance(entropy.shape[2], torch.SymInt)
    assert isinstance(index.shape[1], torch.SymInt)
    assert out.stride()[1] == out.shape[3]


@pytest.mark.parametrize(
    "in_dims", [(0, 0, 0), (1, None, None), (None, 2, 2), (3, 1, None), (0, None, 3), (-1, -2, 0)]
)
@pytest.mark.parametrize("bias", ["none", "shared", "mapped", "mapped row", "full"])
def test_vmap(in_dims: tuple[int | None, ...], bias: str) -> None:
    size = 3
    made = [
        torch.stack(
            [quantised(*t.shape, dtype=torch.float32, seed=10 * i + j) for j in range(size)],
            dim % 5 if dim is not None else 0,
        )
        if dim is not None
        else t
        for i, (t, dim) in enumerate(zip(operands(), in_dims, strict=True))
    ]
    given: dict[str, tuple[Tensor | None, int | None]] = {
        "none": (None, None),
        "shared": (biases()["float"], None),
        "mapped": (quantised(5, size, 7, dtype=torch.float32, seed=7), 1),
        "mapped row": (quantised(7, size, dtype=torch.float32, seed=7), 1),
        "full": (quantised(2, 4, 5, 7, dtype=torch.float32, seed=7), None),
    }
    value, dim = given[bias]
    dims = (*in_dims, dim)
    out, entropy = torch.func.vmap(lambda q, k, v, b: attention(q, k, v, b, 0.3), in_dims=dims)(*made, value)
    for j in range(size):
        parts = [
            t if d is None or t is None else t.select(d, j) for t, d in zip((*made, value), dims, strict=True)
        ]
        one_out, one_entropy = attention(*parts, 0.3)
        torch.testing.assert_close(out[j], one_out)
        torch.testing.assert_close(entropy[j], one_entropy)


def test_vmap_of_the_gate() -> None:
    entropy = torch.rand(4, 3, 9)
    mapped = torch.func.vmap(lambda e: gate(e, 5), in_dims=1)(entropy)
    assert torch.equal(mapped, torch.stack([gate(entropy[:, j], 5) for j in range(3)]))


@pytest.mark.parametrize("which", range(4))
def test_gradients_are_refused(which: int) -> None:
    arguments = [*operands(), quantised(5, 7, dtype=torch.float32, seed=4)]
    arguments[which].requires_grad_()
    with pytest.raises(GradientNotSupportedError, match="torch.no_grad"):
        attention(*arguments, None)
    with torch.no_grad():
        attention(*arguments, None)
    with torch.inference_mode():
        attention(*arguments, None)
    attention(*(t.detach() for t in arguments), None)


def test_gradients_are_refused_while_tracing() -> None:
    q, k, v = operands()
    compiled = torch.compile(lambda q: attention(q * 2, k, v, None, None)[0], backend="aot_eager")
    with pytest.raises(Exception, match="requires inputs without gradients"):
        compiled(q.requires_grad_())


q, k, v = operands()
WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "rank": ((q[0], k, v, None, None), "rank 4"),
    "batch": ((q[:1], k, v, None, None), "one batch size"),
    "length": ((q, k, v[:, :, 1:], None, None), "same heads and length"),
    "value heads": ((q, k, v[:, :1], None, None), "same heads and length"),
    "grouping": ((q[:, :3], k, v, None, None), "multiple of the key heads"),
    "no key heads": ((q, k[:, :0], v[:, :0], None, None), "multiple of the key heads"),
    "head size": ((q[..., :8], k, v, None, None), "same head size"),
    "no head size": ((q[..., :0], k[..., :0], v, None, None), "from 1 to 256"),
    "wide head": ((q.repeat(1, 1, 1, 17), k.repeat(1, 1, 1, 17), v, None, None), "from 1 to 256"),
    "wide value": ((q, k, v.repeat(1, 1, 1, 17), None, None), "from 1 to 256"),
    "dtype mix": ((q, k.half(), v, None, None), "one dtype"),
    "integers": ((q.int(), k.int(), v.int(), None, None), "one dtype"),
    "complex": ((q.cfloat(), k.cfloat(), v.cfloat(), None, None), "one dtype"),
    "device mix": ((q, k.to("meta"), v, None, None), "one device"),
    "bias dtype": ((q, k, v, torch.ones(5, 7, dtype=torch.int64), None), "bool"),
    "bias device": ((q, k, v, torch.ones(5, 7, device="meta"), None), "bias on q's device"),
    "bias shape": ((q, k, v, torch.ones(5, 6), None), "broadcasts"),
    "bias rank": ((q, k, v, torch.ones(1, 1, 1, 5, 7), None), "broadcasts"),
    "bias too large": ((q, k, v, torch.ones(3, 1, 5, 7), None), "broadcasts"),
    "scale": ((q, k, v, None, float("inf")), "finite scale"),
    "scale NaN": ((q, k, v, None, float("nan")), "finite scale"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_inputs_fail_alike_everywhere(case: str) -> None:
    arguments, words = WRONG[case]
    messages = set()
    for name in ("cpu", "reference"):
        with pytest.raises(KernelInputError, match=words) as caught:
            ops.implementation(name)(*arguments)  # type: ignore[arg-type]
        messages.add(str(caught.value))
    if case not in ("device mix", "bias device"):
        with pytest.raises(KernelInputError, match=words) as caught:
            attention(*arguments)
        messages.add(str(caught.value))
        with FakeTensorMode() as mode, pytest.raises(KernelInputError, match=words) as caught:
            attention(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
        messages.add(str(caught.value))
    assert len(messages) == 1
    message = messages.pop()
    assert "requires" in message
    assert "got" in message
    assert ";" in message


@pytest.mark.parametrize(
    ("entropy", "keep", "words"),
    [
        (torch.rand(9), 3, "rank 2"),
        (torch.ones(2, 9, dtype=torch.int64), 3, "floating"),
        (torch.rand(2, 9), 10, "between 0 and the 9"),
        (torch.rand(2, 9), -1, "between 0 and the 9"),
    ],
)
def test_wrong_gate_inputs(entropy: Tensor, keep: int, words: str) -> None:
    with pytest.raises(KernelInputError, match=words):
        gate(entropy, keep)
    with FakeTensorMode() as mode, pytest.raises(KernelInputError, match=words):
        gate(mode.from_tensor(entropy), keep)


def test_dispatch_on_cpu_is_the_cpu_implementation() -> None:
    out, entropy = attention(*operands(), None, None)
    same_out, same_entropy = ops.implementation("cpu-native")(*operands(), None, None)
    assert torch.equal(out, same_out)
    assert torch.equal(entropy, same_entropy)


def test_unknown_implementation() -> None:
    with pytest.raises(KernelUnavailableError, match="among cpu, cpu-native, reference, triton, got 'metal'"):
        ops.implementation("metal")


def test_triton_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    ops._triton.cache_clear()
    with pytest.raises(KernelUnavailableError, match="install triton"):
        ops.implementation("triton")
    ops._triton.cache_clear()


def test_second_import_under_another_name_is_refused() -> None:
    spec = importlib.util.spec_from_file_location("kernels.ops", Path(ops.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError, match="import toprovar_compiler.kernels.ops instead"):
        spec.loader.exec_module(module)


def test_reference_by_hand() -> None:
    """Two keys with logits 0 and log 3: weights 1/4 and 3/4."""
    three = torch.tensor(3.0, dtype=torch.float64)
    q = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    k = torch.stack([torch.zeros_like(three), three.log()]).reshape(1, 1, 2, 1)
    v = torch.tensor([[[[8.0], [4.0]]]], dtype=torch.float64)
    out, entropy = attention_entropy_reference(q, k, v, None, 1.0)
    assert out.item() == pytest.approx(5.0)
    assert entropy.item() == pytest.approx(float(4 * three.new_tensor(4.0).log() - 3 * three.log()) / 4)
