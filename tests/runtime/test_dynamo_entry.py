"""``torch.compile(..., backend="toprovar")``: wrappers, their options, and what they leave alone."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toprovar_compiler
from tests.toy_generators import ClassVAR, TextVAR
from toprovar_compiler import dynamo_entry


def _wrap(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="toprovar", options=options)


def _share(model: Any) -> float:
    data = toprovar_compiler.summary(model).to_dict()
    return data["tokens_computed"] / data["tokens_total"]


def test_a_method_that_is_not_forward_prunes(plain_class_var: Any, labels: Tensor) -> None:
    wrapped = _wrap(plain_class_var, keep_ratio=0.3)
    wrapped.autoregressive_infer_cfg(labels)
    assert _share(wrapped) < 0.5


def test_the_model_itself_stays_eager(plain_class_var: Any, labels: Tensor) -> None:
    eager = plain_class_var.autoregressive_infer_cfg(labels)
    wrapped = _wrap(plain_class_var, keep_ratio=0.3)
    wrapped.autoregressive_infer_cfg(labels)
    assert torch.equal(plain_class_var.autoregressive_infer_cfg(labels), eager)
    assert toprovar_compiler.summary(wrapped).to_dict()["generations"] == 1


def test_wrappers_of_one_model_keep_their_own_options(plain_class_var: Any, labels: Tensor) -> None:
    dense, pruned = _wrap(plain_class_var, policy="dense"), _wrap(plain_class_var, keep_ratio=0.3)
    pruned.autoregressive_infer_cfg(labels)
    dense.autoregressive_infer_cfg(labels)
    assert _share(dense) == 1.0
    assert _share(pruned) < 0.5


def test_a_wrapper_keeps_its_options_beside_a_model_compiled_in_place(class_var: Any, labels: Tensor) -> None:
    model = class_var(policy="dense")
    wrapped = _wrap(model, keep_ratio=0.3)
    wrapped.autoregressive_infer_cfg(labels)
    model.autoregressive_infer_cfg(labels)
    assert _share(wrapped) < 0.5
    assert _share(model) == 1.0


def test_a_bound_method_prunes(plain_class_var: Any, labels: Tensor) -> None:
    generate = torch.compile(
        plain_class_var.autoregressive_infer_cfg, backend="toprovar", options={"keep_ratio": 0.3}
    )
    picture = generate(labels)
    assert torch.equal(picture, _wrap(plain_class_var, keep_ratio=0.3).autoregressive_infer_cfg(labels))
    assert not torch.equal(picture, plain_class_var.autoregressive_infer_cfg(labels))


def test_a_wrapped_method_looks_like_the_method(plain_class_var: Any) -> None:
    method = _wrap(plain_class_var).autoregressive_infer_cfg
    assert inspect.signature(method) == inspect.signature(plain_class_var.autoregressive_infer_cfg)
    assert method.__doc__ == plain_class_var.autoregressive_infer_cfg.__doc__


def test_attributes_are_the_models(plain_class_var: Any) -> None:
    wrapped = _wrap(plain_class_var)
    assert wrapped.blocks[1] is plain_class_var.blocks[1]
    assert wrapped.patch_nums == plain_class_var.patch_nums
    with pytest.raises(AttributeError, match="colour"):
        wrapped.colour  # noqa: B018


def test_a_wrapper_is_a_module(plain_class_var: Any) -> None:
    wrapped = _wrap(plain_class_var)
    assert isinstance(wrapped, nn.Module)
    assert len(list(wrapped.parameters())) == len(list(plain_class_var.parameters()))
    assert not wrapped.eval().training


def test_a_generating_submodule_of_a_wrapped_pipeline_prunes(plain_class_var: Any, labels: Tensor) -> None:
    pipeline = nn.Module()
    pipeline.var = plain_class_var
    wrapped = _wrap(pipeline, keep_ratio=0.3, start_scale=2)
    wrapped.var.autoregressive_infer_cfg(labels)
    assert _share(wrapped) < 0.5


def test_the_callers_own_loop_over_scales_prunes(text_var: Any, prompt: Tensor) -> None:
    model = text_var(keep_ratio=0.3, start_scale=2, restoration="bypass", entropy_source="same-layer")
    in_place = model.paint(prompt)
    toprovar_compiler.restore(model)
    wrapped = _wrap(model, keep_ratio=0.3, start_scale=2, restoration="bypass", entropy_source="same-layer")
    with torch.no_grad():
        stepped = TextVAR.paint.__wrapped__(wrapped, prompt)
    assert torch.equal(stepped, in_place)
    assert toprovar_compiler.summary(wrapped).to_dict()["generations"] == 1


def test_the_callers_own_loop_with_scale_exit_says_that_codes_are_not_zeroed(
    text_var: Any, prompt: Tensor
) -> None:
    model = text_var()
    toprovar_compiler.restore(model)
    wrapped = _wrap(model, keep_ratio=0.3, start_scale=2)
    with torch.no_grad(), pytest.warns(UserWarning, match="residual codes"):
        TextVAR.paint.__wrapped__(wrapped, prompt)


def test_a_restored_wrapper_runs_eagerly(plain_class_var: Any, labels: Tensor) -> None:
    wrapped = _wrap(plain_class_var, keep_ratio=0.3)
    wrapped.autoregressive_infer_cfg(labels)
    toprovar_compiler.restore(wrapped)
    eager = plain_class_var.autoregressive_infer_cfg(labels)
    assert torch.equal(wrapped.autoregressive_infer_cfg(labels), eager)


def test_a_failed_call_leaves_the_model_eager_and_the_wrapper_working(
    plain_class_var: Any, labels: Tensor
) -> None:
    wrapped = _wrap(plain_class_var, keep_ratio=0.3)
    picture = wrapped.autoregressive_infer_cfg(labels)
    with pytest.raises(IndexError):
        wrapped.autoregressive_infer_cfg(labels + 100)
    assert all(block._compiled_call_impl is None for block in plain_class_var.blocks)
    assert torch.equal(wrapped.autoregressive_infer_cfg(labels), picture)


def test_a_function_without_a_model_is_compiled_as_usual() -> None:
    with torch.no_grad(), pytest.warns(UserWarning, match="no attention in this graph"):
        doubled = torch.compile(lambda x: x.sin() * 2, backend="toprovar")(torch.ones(3))
    assert torch.equal(doubled, torch.ones(3).sin() * 2)


def test_a_module_without_blocks_is_compiled_as_usual() -> None:
    linear = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    with torch.no_grad(), pytest.warns(UserWarning, match="no attention"):
        assert torch.equal(torch.compile(linear, backend="toprovar")(x), linear(x))


def test_other_backends_are_none_of_ours(plain_class_var: Any, labels: Tensor) -> None:
    wrapped = torch.compile(plain_class_var, backend="eager")
    assert not isinstance(wrapped, dynamo_entry.ToprovarModule)
    wrapped.autoregressive_infer_cfg(labels)
    assert toprovar_compiler.summary().to_dict()["generations"] == 0


def test_installing_twice_wraps_once() -> None:
    before = torch._dynamo.eval_frame.OptimizeContext.__call__
    dynamo_entry.install()
    assert torch._dynamo.eval_frame.OptimizeContext.__call__ is before


def test_two_models_interleaved_do_not_disturb_each_other(
    class_var: Any, text_var: Any, labels: Tensor
) -> None:
    """One generates between the scales of the other."""
    outer, inner = class_var(keep_ratio=0.3), text_var(keep_ratio=0.3, start_scale=2)
    words = torch.tensor([[3, 1, 4], [1, 5, 9]])
    alone = outer.autoregressive_infer_cfg(labels), inner.paint(words)
    book, within = outer.vae_proxy[0], []
    add = book.add
    book.add = lambda f, idx, side: (within.append(inner.paint(words)), add(f, idx, side))[1]
    try:
        together = outer.autoregressive_infer_cfg(labels)
    finally:
        del book.add
    assert torch.equal(together, alone[0])
    assert all(torch.equal(picture, alone[1]) for picture in within)
    assert len(within) == len(ClassVAR().patch_nums)
