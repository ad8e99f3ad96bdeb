"""A model whose repeated blocks are compiled, for good or for the time of a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from toprovar_compiler.backend import Backend
from toprovar_compiler.blocks import find_blocks
from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.registry import REGISTRY
from toprovar_compiler.residual_codes import watch_codes
from toprovar_compiler.schedule import stated_schedule
from toprovar_compiler.session import Session

# Dynamo falls to eager, silently, past this many graphs for one block's code; each batch size, dtype and
# option set of each model adds up to three.
_RECOMPILE_LIMIT = 64


class CompiledModel:
    """The blocks of one model, compiled through one backend; the model's source and weights untouched.

    Raises:
        UnsupportedModelError: no repeated transformer blocks.
        OptionError: ``options`` do not fit the model's schedule.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.blocks = find_blocks(model, options.blocks)
        self.schedule = stated_schedule(model)
        self.name = type(model).__name__
        self.session = self._new_session(options)
        self.backend = Backend(self.session)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        self._calls = [
            torch.compile(block._call_impl, backend=self.backend, dynamic=None) for block in self.blocks
        ]
        self._hooks = watch_codes(model, lambda: self.session)
        self._permanent = False
        self._active = 0

    def set_options(self, options: Options) -> None:
        """Start a new session; graphs that were compiled before serve it too."""
        self.session = self.backend.session = self._new_session(options)

    def attach(self) -> None:
        """From now on the blocks run compiled, whoever calls them."""
        self._permanent = True
        self._set_calls()

    def detach(self) -> None:
        """Undo everything: blocks run eagerly and the hooks are gone."""
        self._permanent = False
        self._set_calls()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The blocks run compiled inside the context (re-entrant)."""
        self._active += 1
        self._set_calls()
        try:
            yield
            if self._active == 1:
                self.session.finish()
        except BaseException:
            self.session.abandon()
            raise
        finally:
            self._active -= 1
            self._set_calls()

    def _set_calls(self) -> None:
        on = self._permanent or self._active > 0
        for block, call in zip(self.blocks, self._calls, strict=True):
            # The attribute that nn.Module.compile() sets, and that Module.__call__ looks for.
            block._compiled_call_impl = call if on else None

    def _new_session(self, options: Options) -> Session:
        _check_schedule(options, self.schedule)
        session = Session(self.name, options, self.schedule)
        REGISTRY.add(session)
        return session


def compiled(model: nn.Module, options: Options) -> CompiledModel:
    """The compiled form of ``model``, made once; a second call changes its options."""
    found = REGISTRY.models.get(model)
    if found is None:
        found = REGISTRY.models[model] = CompiledModel(model, options)
    else:
        found.set_options(options)
    return found


def _check_schedule(options: Options, schedule: tuple[int, ...] | None) -> None:
    if schedule is None:
        return
    scales = len(schedule)
    if options.start_scale is not None and options.start_scale >= scales:
        raise OptionError(
            f"start_scale requires a scale of the model's schedule (0 to {scales - 1}), "
            f"got {options.start_scale}; "
            "choose a smaller one"
        )
    ratios = options.keep_ratio
    if ratios is not None and not isinstance(ratios, (int, float)) and len(ratios) != scales:
        raise OptionError(
            f"keep_ratio requires one number per scale, got {len(ratios)} for a schedule of {scales} scales; "
            "give one number, or one for each scale"
        )
