"""Who the attention benchmark measures against, and what happens where one is missing or wrong."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch

from benchmarks import attention_rivals
from benchmarks.attention_rivals import (
    FA2,
    FA3,
    FA3_SPLITS,
    NAIVE,
    OURS,
    Contender,
    check_agreement,
    naive_entropy,
    on_cpu,
    on_gpu,
    operands,
    supporting,
)
from toprovar_compiler.kernels.reference import attention_entropy_reference

SHAPE = (1, 2, 8, 12, 16)


@pytest.fixture
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def test_a_missing_rival_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", None)
    field = on_gpu()
    assert not {FA3, FA3_SPLITS} & {contender.name for contender in field.contenders}
    assert "fa3-fwd cannot be imported" in field.absent[FA3]
    assert set(field.absent) == {FA3, FA3_SPLITS}


@pytest.mark.usefixtures("_without_gpu")
def test_flash_attention_3_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("fa3_fwd_interface")
    splits = []

    def by_token(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_splits: int = 1) -> torch.Tensor:
        splits.append(num_splits)
        attended = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
        return attended.transpose(1, 2)

    package.flash_attn_func = by_token  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", package)
    field = on_gpu()
    both = [contender for contender in field.contenders if contender.name in (FA3, FA3_SPLITS)]
    calls, refused = supporting([*on_cpu().contenders, *both], *operands(SHAPE, torch.float32, "cpu"))
    assert {FA3, FA3_SPLITS} <= set(calls)
    assert refused == {}
    assert splits == [1, 0]


def test_naive_entropy_is_the_reference() -> None:
    q, k, v = operands(SHAPE, torch.float32, "cpu")
    out, entropy = naive_entropy(q, k, v)
    wide = [x.double() for x in (q, k, v)]
    expected_out, expected_entropy = attention_entropy_reference(*wide, None, None)
    eps, size, keys = torch.finfo(torch.float32).eps, SHAPE[4], SHAPE[3]
    # A logit sums D products; a weight changes by twice what the worst logit does, and sums have Nk terms.
    logit = size * eps * float((q.abs() @ k.abs().mT).max()) / size**0.5
    weight = 2 * logit + keys * eps
    torch.testing.assert_close(out.double(), expected_out, rtol=0, atol=weight * float(v.abs().max()))
    # dH = -sum dp (log p + 1), and no |log p| is above the spread of the logits plus log Nk.
    spread = 2 * float((q @ k.mT).abs().max()) / size**0.5 + math.log(keys) + 1
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=0, atol=weight * spread)


def fails(name: str) -> Contender:
    def call() -> None:
        raise RuntimeError("No available kernel.\nMore of it")

    return Contender(name, lambda q, k, v: call)


@pytest.mark.usefixtures("_without_gpu")
def test_a_rival_that_refuses_a_shape_is_recorded() -> None:
    field = [*on_cpu().contenders, fails(FA2)]
    calls, refused = supporting(field, *operands(SHAPE, torch.float32, "cpu"))
    assert FA2 not in calls
    assert refused == {FA2: "No available kernel."}


@pytest.mark.usefixtures("_without_gpu")
def test_our_own_failure_is_no_refusal() -> None:
    with pytest.raises(RuntimeError, match="No available kernel"):
        supporting([fails(OURS)], *operands(SHAPE, torch.float32, "cpu"))


def test_a_contender_that_computes_something_else_is_an_error() -> None:
    reference = torch.tensor([1.0, -2.0])
    check_agreement(NAIVE, reference + 0.1, reference)
    for wrong in (reference.flip(0), torch.full((2,), float("nan"))):
        with pytest.raises(RuntimeError, match=r"naive entropy requires an output within 0\.2"):
            check_agreement(NAIVE, wrong, reference)


def test_operands_are_the_same_every_time() -> None:
    first, second = (operands(SHAPE, torch.bfloat16, "cpu") for _ in range(2))
    assert [x.shape for x in first] == [(1, 2, 8, 16), (1, 2, 12, 16), (1, 2, 12, 16)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_flex_attention_computes_attention() -> None:
    q, k, v = operands(SHAPE, torch.float32, "cpu")
    _, bind, around = attention_rivals.flex()
    with around(), torch.no_grad():
        out = bind(q, k, v)()
    check_agreement("flex_attention", out, attention_entropy_reference(q, k, v, None, None)[0])
