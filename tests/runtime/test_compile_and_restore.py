"""Compiling in place, undoing it, and what is held alive."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toprovar_compiler
from tests.toy_generators import ClassVAR, make
from toprovar_compiler.errors import UnsupportedModelError


def _hooks(model: ClassVAR) -> int:
    parts = [*model.modules(), *(m for held in model.vae_proxy for m in held.modules())]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in parts)


def test_compile_returns_the_same_object(class_var: Any) -> None:
    model = class_var()
    assert toprovar_compiler.compile(model) is model


def test_compile_and_restore_leave_state_and_structure_alone() -> None:
    model, plain = make(ClassVAR), make(ClassVAR)
    toprovar_compiler.compile(model)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_restored_model_is_bitwise_eager_again(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    toprovar_compiler.restore(model)
    assert torch.equal(
        model.autoregressive_infer_cfg(labels), make(ClassVAR).autoregressive_infer_cfg(labels)
    )


def test_restore_removes_every_hook_and_compiled_call(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3)
    assert _hooks(model)
    model.autoregressive_infer_cfg(labels)
    toprovar_compiler.restore(model)
    assert not _hooks(model)
    assert all(block._compiled_call_impl is None for block in model.blocks)


def test_compiling_often_leaves_one_set_of_hooks(class_var: Any) -> None:
    once = _hooks(class_var())
    for ratio in (0.3, 0.5):
        model = class_var(keep_ratio=ratio)
    assert _hooks(model) == once


def test_restoring_twice_is_refused(class_var: Any) -> None:
    model = class_var()
    toprovar_compiler.restore(model)
    with pytest.raises(UnsupportedModelError):
        toprovar_compiler.restore(model)


def test_restore_leaves_the_users_own_compilation_of_a_block() -> None:
    model = make(ClassVAR)
    model.blocks[0].compile(backend="eager")
    own = model.blocks[0]._compiled_call_impl
    toprovar_compiler.restore(toprovar_compiler.compile(model))
    assert model.blocks[0]._compiled_call_impl is own


def test_new_options_take_effect_without_new_graphs(class_var: Any, labels: Tensor) -> None:
    for ratio in (0.3, 0.5):
        model = class_var(keep_ratio=ratio)
        model.autoregressive_infer_cfg(labels)
    data = toprovar_compiler.summary(model).to_dict()
    assert data["per_scale"][4]["tokens_computed"] == data["per_scale"][4]["tokens_total"] / 2
    assert data["graphs"] == 0


@pytest.fixture(scope="module")
def own_model() -> Any:
    """A model whose weights these tests may change, pruned in place."""
    return make(ClassVAR)


def test_weights_loaded_after_compilation_are_used(own_model: Any, labels: Tensor) -> None:
    model, other = toprovar_compiler.compile(own_model, policy="dense"), make(ClassVAR, seed=1)
    model.autoregressive_infer_cfg(labels)
    model.load_state_dict(other.state_dict())
    model.vae_proxy[0].load_state_dict(other.vae_proxy[0].state_dict())
    assert torch.equal(model.autoregressive_infer_cfg(labels), other.autoregressive_infer_cfg(labels))


def test_assigned_weights_are_the_same_layers(own_model: Any, labels: Tensor) -> None:
    model = toprovar_compiler.compile(own_model, keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    model.autoregressive_infer_cfg(labels)
    assert [row["layer"] for row in toprovar_compiler.summary(model).to_dict()["per_layer"]] == [0, 1, 2]


def test_models_that_ran_can_be_collected(labels: Tensor) -> None:
    """Compiled in place, and through a wrapper too."""
    model = toprovar_compiler.compile(make(ClassVAR), keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    wrapped = torch.compile(model, backend="toprovar", options={"keep_ratio": 0.5})
    wrapped.autoregressive_infer_cfg(labels)
    alive = [weakref.ref(model), weakref.ref(model.blocks[0]), weakref.ref(model.vae_proxy[0])]
    del model, wrapped
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_kept_tokens_are_shares_at_the_pruned_scales(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    kept = toprovar_compiler.kept_tokens(model)
    assert {scale: tuple(share.shape) for scale, share in kept.items()} == {2: (2, 9), 3: (2, 16), 4: (2, 36)}
    assert {scale: share.sum(1).tolist() for scale, share in kept.items()} == {
        2: [3, 3],
        3: [5, 5],
        4: [11, 11],
    }


def test_blocks_named_by_path_are_compiled(labels: Tensor) -> None:
    model = nn.Module()
    model.var = make(ClassVAR, depth=2)
    toprovar_compiler.compile(model, blocks="var.blocks", start_scale=2)
    model.var.autoregressive_infer_cfg(labels)
    data = toprovar_compiler.summary(model).to_dict()
    assert data["tokens_computed"] < data["tokens_total"]


def test_a_model_that_stays_compiled_until_python_ends_goes_quietly() -> None:
    """What holds it may go after most of torch has."""
    script = (
        "import torch, toprovar_compiler\n"
        "from tests.toy_generators import ClassVAR, make\n"
        "torch.held = make(ClassVAR)\n"
        "toprovar_compiler.compile(torch.held, policy='dense')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
