"""What cannot be pruned: counted and warned about once, or refused under ``strict``."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toprovar_compiler
from tests.toy_generators import ClassVAR, MixingVAR, make
from toprovar_compiler import graph_runtime
from toprovar_compiler.errors import UnsupportedGraphError


class _NoAttention(nn.Module):
    """Three projections and no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)))
        self.attn = nn.Module()
        self.attn.kv_caching = lambda enable: None

    def forward(self, x: Tensor, cond_BD: Tensor) -> Tensor:
        return x + self.layers(x)


@pytest.fixture(scope="module")
def mixing() -> Any:
    return make(MixingVAR)


def _caught(call: Any, times: int = 1) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            call()
    return [str(warning.message) for warning in caught if "toprovar" in str(warning.message)]


def test_blocks_that_mix_tokens_run_dense_and_the_reason_is_counted(mixing: Any, labels: Tensor) -> None:
    model = toprovar_compiler.compile(mixing, keep_ratio=0.3)
    with pytest.warns(UserWarning, match="toprovar"):
        model.autoregressive_infer_cfg(labels)
    data = toprovar_compiler.summary(model).to_dict()
    assert data["tokens_computed"] == data["tokens_total"]
    ((reason, count),) = data["fallbacks"].items()
    assert "conv" in reason
    assert count == 3 * 3, "three layers at each of the three scales that were due"


def test_strict_refuses_blocks_that_mix_tokens(mixing: Any, labels: Tensor) -> None:
    model = toprovar_compiler.compile(mixing, keep_ratio=0.3, strict=True)
    with pytest.raises(UnsupportedGraphError, match="strict=True.*conv"):
        model.autoregressive_infer_cfg(labels)


def test_after_a_strict_refusal_the_model_can_run_dense(mixing: Any, labels: Tensor) -> None:
    model = toprovar_compiler.compile(mixing, strict=True)
    with pytest.raises(UnsupportedGraphError):
        model.autoregressive_infer_cfg(labels)
    model = toprovar_compiler.compile(mixing, policy="dense", strict=True)
    expected = make(MixingVAR).autoregressive_infer_cfg(labels)
    torch.testing.assert_close(model.autoregressive_infer_cfg(labels), expected)


def test_dense_is_no_zero_effect_even_under_strict(class_var: Any, labels: Tensor) -> None:
    model = class_var(policy="dense", strict=True)
    assert _caught(lambda: model.autoregressive_infer_cfg(labels), times=2) == []


def test_zero_effect_is_one_warning(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=1.0)
    messages = _caught(lambda: model.autoregressive_infer_cfg(labels), times=4)
    assert [message for message in messages if "pruned nothing" in message] == messages
    assert len(messages) == 1


def test_zero_effect_is_known_after_the_first_generation(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=1.0)
    messages = _caught(lambda: (model.autoregressive_infer_cfg(labels), toprovar_compiler.summary(model)))
    assert len(messages) == 1


def test_zero_effect_of_a_wrapper_is_known_after_the_first_call(plain_class_var: Any, labels: Tensor) -> None:
    wrapped = torch.compile(plain_class_var, backend="toprovar", options={"keep_ratio": 1.0})
    assert len(_caught(lambda: wrapped.autoregressive_infer_cfg(labels), times=3)) == 1


def test_zero_effect_is_refused_under_strict(plain_class_var: Any, labels: Tensor) -> None:
    options = {"keep_ratio": 1.0, "strict": True}
    wrapped = torch.compile(plain_class_var, backend="toprovar", options=options)
    with pytest.raises(UnsupportedGraphError, match="pruned nothing in a whole generation"):
        wrapped.autoregressive_infer_cfg(labels)


def test_pruning_warns_of_nothing(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3, strict=True)
    assert _caught(lambda: model.autoregressive_infer_cfg(labels), times=2) == []


def test_a_reset_between_generations_is_no_zero_effect(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3, strict=True)

    def generate_and_reset() -> None:
        model.autoregressive_infer_cfg(labels)
        toprovar_compiler.reset()
        toprovar_compiler.summary(model)

    assert _caught(generate_and_reset, times=3) == []


def test_strict_refuses_blocks_without_attention(labels: Tensor) -> None:
    model = make(ClassVAR)
    model.blocks = nn.ModuleList(_NoAttention() for _ in range(2))
    toprovar_compiler.compile(model, strict=True)
    with pytest.raises(UnsupportedGraphError, match="no attention"):
        model.autoregressive_infer_cfg(labels)


def test_strict_refuses_gradients(labels: Tensor) -> None:
    model = toprovar_compiler.compile(make(ClassVAR, depth=2), strict=True)
    with pytest.raises(UnsupportedGraphError, match=r"needs gradients.*no_grad"):
        ClassVAR.autoregressive_infer_cfg.__wrapped__(model, labels)


def test_gradients_run_as_plain_inductor_and_are_counted(class_var: Any, labels: Tensor) -> None:
    model = class_var()
    with pytest.warns(UserWarning, match="needs gradients"):
        features = ClassVAR.autoregressive_infer_cfg.__wrapped__(model, labels)
    assert torch.equal(features.detach(), make(ClassVAR).autoregressive_infer_cfg(labels))


def test_strict_refuses_scale_exit_without_codes(
    class_var: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = class_var(keep_ratio=0.3, strict=True)
    weight = model.vae_proxy[0].embedding.weight
    monkeypatch.setattr(model, "vae_proxy", (_TableOnly(weight),))
    with pytest.raises(UnsupportedGraphError, match="residual codes were not found"):
        model.autoregressive_infer_cfg(labels)


class _TableOnly:
    """A tokenizer without an embedding module."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def add(self, f_hat: Tensor, idx: Tensor, side: int) -> Tensor:
        h = self.weight[idx].transpose(1, 2).unflatten(2, (side, side))
        return f_hat + nn.functional.interpolate(h, size=f_hat.shape[-2:], mode="nearest")


def test_a_model_that_ran_uncompiled_past_dynamos_limit_is_not_silent(
    labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toprovar_compiler.compiled_model._RECOMPILE_LIMIT", 2)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        wrapped = torch.compile(make(ClassVAR), backend="toprovar", options={"keep_ratio": 0.3})
        messages = _caught(lambda: wrapped.autoregressive_infer_cfg(labels))
    torch._dynamo.reset()
    assert any("3 of 5 scales did not run compiled" in message for message in messages)


def test_a_slower_attention_kernel_is_counted_and_warned_about_once_but_never_refused(
    labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[object, ...]] = set()

    def shortfall(*call: object) -> str:
        asked.add(call)
        return "it did not compile"

    monkeypatch.setattr(graph_runtime, "hopper_shortfall", shortfall)
    model = toprovar_compiler.compile(make(ClassVAR), keep_ratio=0.3, strict=True)
    warned = _caught(lambda: model.autoregressive_infer_cfg(labels), times=2)
    data = toprovar_compiler.summary(model).to_dict()
    assert data["tokens_computed"] < data["tokens_total"]
    ((reason, count),) = data["fallbacks"].items()
    assert reason == "attention runs slower than this GPU's Hopper kernel would: it did not compile"
    assert len(warned) == 1
    assert reason in warned[0]
    scales_with_entropy = 4  # the three that are pruned, and the one before them
    assert count == 2 * 3 * scales_with_entropy, "two generations of three layers"
    assert asked == {(torch.device("cpu"), 8, torch.float32)}
