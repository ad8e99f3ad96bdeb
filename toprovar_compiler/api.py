"""The public functions: compile, restore, summary, reset, kept_tokens."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from toprovar_compiler.compiled_model import CompiledModel
from toprovar_compiler.dynamo_entry import ToprovarModule
from toprovar_compiler.errors import UnsupportedModelError
from toprovar_compiler.options import parse_options
from toprovar_compiler.policies.base import Policy
from toprovar_compiler.registry import REGISTRY
from toprovar_compiler.summary import Summary

Model = TypeVar("Model", bound=nn.Module)


def compile(model: Model, **options: Any) -> Model:
    """Compile the repeated transformer blocks of ``model`` in place; :func:`restore` undoes it.

    Compilation happens at the first generation. A second call changes the options and starts new counts;
    what was compiled is used again.

    Args:
        model: any VAR-style model; its source and its weights are untouched.
        **options: see :class:`~toprovar_compiler.options.Options`.

    Returns:
        The same object.

    Raises:
        OptionError: unknown option, or a value out of range or outside the model's schedule.
        UnsupportedModelError: ``model`` has no repeated transformer blocks.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"requires a torch.nn.Module, got {type(model).__name__}; for a method use "
            "torch.compile(model.method, backend='toprovar')"
        )
    inner = _inner(model)
    compilation = CompiledModel(inner, parse_options(options))
    earlier = REGISTRY.attached.pop(inner, None)
    if earlier is not None:
        earlier.detach()
    compilation.attach(inner)
    REGISTRY.attached[inner] = compilation
    return model


def restore(model: Model) -> Model:
    """Undo :func:`compile`, or make what ``torch.compile`` returned run eagerly. Returns the same object.

    Raises:
        UnsupportedModelError: the model is not compiled.
    """
    if isinstance(model, ToprovarModule):
        _find(model).detach()
        return model
    compilation = REGISTRY.attached.pop(_inner(model), None)
    if compilation is None:
        raise UnsupportedModelError(
            f"requires a model compiled in place, got a {type(model).__name__} that is not; "
            "there is nothing to restore"
        )
    compilation.detach()
    return model


def summary(model: nn.Module | None = None) -> Summary:
    """What was computed and what was skipped: of ``model``, or of everything since the last :func:`reset`.

    Raises:
        UnsupportedModelError: the model is not compiled.
        UnsupportedGraphError: the generation that just ran pruned nothing, under ``strict=True``.
    """
    if model is None:
        for session in REGISTRY.sessions():
            session.settle()
        return Summary(REGISTRY.counters())
    attached = REGISTRY.attached.get(_inner(model))
    if isinstance(model, ToprovarModule):
        found = [model.compilation]
    elif attached is not None:
        found = [attached]
    else:
        found = REGISTRY.compilations(_inner(model)) or [_find(model)]
    for compilation in found:
        compilation.session.settle()
    # Of several compilations nobody knows here which one ran last.
    bound = found[0].session.error_bound() if len(found) == 1 else None
    return Summary(tuple(compilation.session.counters for compilation in found), bound)


def reset() -> None:
    """Set all counts to zero."""
    REGISTRY.reset()


def kept_tokens(model: nn.Module) -> dict[int, Tensor]:
    """The share of layers that computed each token, at every pruned scale of the last generation.

    Returns:
        scale -> [samples, N] float in [0, 1], tokens in row-major order of the scale's grid.

    Raises:
        UnsupportedModelError: the model is not compiled.
    """
    return _find(model).session.kept_tokens()


def policy_of(model: nn.Module) -> Policy:
    """The policy object of the compilation that a wrapper stands for, or of the one that ran last.

    Raises:
        UnsupportedModelError: the model is not compiled.
    """
    return _find(model).session.policy


def is_learning(model: nn.Module) -> bool:
    """Whether what ran last was a generation to learn from, so that the next one is the first to be pruned.

    False for a model that is not compiled.
    """
    try:
        return policy_of(model).learning
    except UnsupportedModelError:
        return False


def _find(model: nn.Module) -> CompiledModel:
    """The compilation that a wrapper stands for, or the one of the model that ran last."""
    if isinstance(model, ToprovarModule):
        return model.compilation
    found = REGISTRY.compilations(_inner(model))
    if not found:
        raise UnsupportedModelError(
            f"requires a compiled model, got a {type(model).__name__} that is not; "
            "call toprovar_compiler.compile first"
        )
    return found[-1]


def _inner(model: nn.Module) -> nn.Module:
    inner: nn.Module = model._orig_mod if isinstance(model, OptimizedModule) else model
    return inner
