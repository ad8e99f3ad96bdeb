"""Makes ``torch.compile(..., backend="toprovar")`` compile the repeated blocks.

VAR models generate in a method that is not ``forward``. Plain Dynamo captures nothing of
``torch.compile(model).generate(...)``, and unrolls the scales of ``torch.compile(model.generate)`` into one
graph of constant sizes. So where a module, or a method of one, is compiled with our backend, its repeated
blocks are compiled instead, for the time of each call; everything else, and the original module, runs as it
did. A function that belongs to no module is compiled by Dynamo as usual.

``torch.compile`` looks the backend up (which imports this package) and then calls a Dynamo context with
the module or function: that call is what :func:`install` wraps.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizeContext, OptimizedModule

from toprovar_compiler.errors import UnsupportedModelError
from toprovar_compiler.options import Options, parse_options
from toprovar_compiler.registry import REGISTRY
from toprovar_compiler.session import Session

if TYPE_CHECKING:
    from toprovar_compiler.compiled_model import CompiledModel

_WRAPPED = "_toprovar_original"


class ToprovarModule(OptimizedModule):
    """What ``torch.compile(module, backend="toprovar")`` returns.

    Every method of the module, ``forward`` too, runs with the blocks compiled; attributes are the module's.
    A submodule that holds the blocks (``pipeline.var``) comes wrapped the same way.
    """

    _opt_mod_attributes = OptimizedModule._opt_mod_attributes | {"_toprovar_compiled"}

    def __init__(self, module: nn.Module, context: Any, compiled_model: CompiledModel) -> None:
        # First, because the base class reads attributes of the module while it is made.
        object.__setattr__(self, "_toprovar_compiled", compiled_model)
        super().__init__(module, context)
        self.forward = _while_active(compiled_model, module, module.__call__)

    @property
    def compilation(self) -> CompiledModel:
        """The compilation that this wrapper runs."""
        found: CompiledModel = self.__dict__["_toprovar_compiled"]
        return found

    def __getattr__(self, name: str) -> Any:
        found: Any = super().__getattr__(name)
        inner = cast(nn.Module, self.__dict__.get("_orig_mod", self._modules.get("_orig_mod")))
        compiled_model = self.compilation
        bound = isinstance(found, types.MethodType) and found.__self__ is inner
        if bound:
            return _while_active(compiled_model, inner, found)
        if isinstance(found, nn.Module) and found is not inner and compiled_model.lies_within(found):
            return ToprovarModule(found, self.dynamo_ctx, compiled_model)
        return found


def install() -> None:
    """Wrap Dynamo's entry once; a second call changes nothing."""
    original = OptimizeContext.__call__
    if hasattr(original, _WRAPPED):
        return

    @functools.wraps(original)
    def call(context: Any, fn: Any) -> Any:
        options = _our_options(context)
        return original(context, fn) if options is None else _compile(original, context, fn, options)

    setattr(call, _WRAPPED, original)
    # setattr, because assigning to a method is what mypy rightly forbids everywhere else
    setattr(OptimizeContext, "__call__", call)  # noqa: B010


def _our_options(context: Any) -> Options | None:
    """The validated options if the context leads to the backend named "toprovar", else None."""
    from toprovar_compiler.backend import toprovar_backend

    inner = context.callback
    while hasattr(inner, "_torchdynamo_orig_backend"):
        inner = inner._torchdynamo_orig_backend
    if getattr(inner, "compiler_fn", inner) is not toprovar_backend:
        return None
    given = dict(getattr(inner, "kwargs", {}))
    return parse_options({**(given.pop("options", None) or {}), **given})


def _compile(original: Callable[..., Any], context: Any, fn: Any, options: Options) -> Any:
    from toprovar_compiler.backend import Backend
    from toprovar_compiler.compiled_model import CompiledModel

    module = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    if isinstance(module, nn.Module):
        try:
            compiled_model = CompiledModel(module, options)
        except UnsupportedModelError:
            if options.strict or options.blocks is not None:
                raise
        else:
            if isinstance(fn, nn.Module):
                return ToprovarModule(fn, context, compiled_model)
            return _while_active(compiled_model, module, fn)
    session = Session(getattr(fn, "__qualname__", type(fn).__name__), options, schedule=None)
    REGISTRY.add(session)
    backend = Backend(session, options.mode)
    return torch.compile(fn, backend=backend, dynamic=context._dynamic, fullgraph=context.fullgraph)


def _while_active(
    compiled_model: CompiledModel, module: nn.Module, method: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with compiled_model.active(module):
            return method(*args, **kwargs)

    return call
