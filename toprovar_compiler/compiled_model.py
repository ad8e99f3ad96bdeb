"""A model whose repeated blocks are compiled, for good or for the time of a call."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from toprovar_compiler.backend import Backend
from toprovar_compiler.blocks import find_blocks
from toprovar_compiler.conditional_rows import ConditionalRows
from toprovar_compiler.errors import OptionError
from toprovar_compiler.numpy_sums import plain_sums
from toprovar_compiler.options import Mode, Options
from toprovar_compiler.packed_prompts import PackedPrompts
from toprovar_compiler.registry import REGISTRY
from toprovar_compiler.residual_codes import watch_codes
from toprovar_compiler.scale_exit import let_exit
from toprovar_compiler.schedule import stated_schedule
from toprovar_compiler.session import Session

# Dynamo falls to eager, silently, past this many graphs for one block's code; each batch size and dtype of
# each model adds up to three.
_RECOMPILE_LIMIT = 64


class BlockCompiler:
    """The blocks of one model and what was compiled of them, shared by all that compile this model.

    Raises:
        UnsupportedModelError: no repeated transformer blocks.
    """

    def __init__(self, model: nn.Module, path: str | None, mode: Mode) -> None:
        self.blocks = find_blocks(model, path)
        self.schedule = stated_schedule(model)
        self.backend = Backend(None, mode, self.blocks)
        with_plain_sums, prompts = plain_sums(self.blocks), PackedPrompts(self.blocks, self.backend)
        self._calls = [
            prompts.padded(block, with_plain_sums(_compiled(block, self.backend))) for block in self.blocks
        ]
        self._rows = ConditionalRows(self.blocks, self.backend)

    @contextlib.contextmanager
    def running(self, model: nn.Module, session: Session) -> Iterator[None]:
        """Inside, the blocks run compiled and ``session`` decides; afterwards all is as it was before."""
        outer = self.backend.session
        # The attribute that nn.Module.compile() sets, and that Module.__call__ looks for.
        calls = [block._compiled_call_impl for block in self.blocks]
        hooks = watch_codes(model, self.backend) if outer is None else []
        if session.policy.may_replace:
            hooks += self._rows.watch(model)
        undo = let_exit(model, self.backend) if session.policy.may_exit else None
        session.can_exit = undo is not None
        # A model that is compiled for good must not be held by that alone.
        del model
        self.backend.session = session
        for block, call in zip(self.blocks, self._calls, strict=True):
            halves = session.policy.may_replace
            block._compiled_call_impl = self._rows.halved(block, call) if halves else call
        try:
            yield
        finally:
            for block, earlier in zip(self.blocks, calls, strict=True):
                # A module's own assignment needs names that are gone when Python ends, where this may run.
                vars(block)["_compiled_call_impl"] = earlier
            self.backend.session = outer
            for hook in hooks:
                hook.remove()
            if undo is not None:
                undo()


class CompiledModel:
    """One compilation of a model with its own options and counts; source and weights are untouched.

    Raises:
        UnsupportedModelError: no repeated transformer blocks.
        OptionError: ``options`` do not fit the model.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.compiler = REGISTRY.compiler(model, options.blocks, options.mode)
        _check_schedule(options, self.compiler.schedule)
        _check_budgets(options, len(self.compiler.blocks))
        self.session = Session(type(model).__name__, options, self.compiler.schedule)
        self.session.policy.meet(model)
        self._attached: contextlib.ExitStack | None = None
        self.enabled = True
        REGISTRY.add_model(model, self)

    def lies_within(self, module: nn.Module) -> bool:
        """Whether ``module`` holds the compiled blocks, without being one of them or their list."""
        inside = set(module.modules())
        return self.compiler.blocks[0] in inside and not isinstance(module, (nn.ModuleList, nn.Sequential))

    def attach(self, model: nn.Module) -> None:
        """From now on the blocks run compiled, whoever calls them."""
        self._attached = contextlib.ExitStack()
        self._attached.enter_context(self.compiler.running(model, self.session))

    def detach(self) -> None:
        """Undo :meth:`attach`; calls through a ``torch.compile`` wrapper run eagerly too from now on."""
        self.enabled = False
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    @contextlib.contextmanager
    def active(self, model: nn.Module) -> Iterator[None]:
        """The blocks run compiled inside the context, with this compilation's options."""
        if not self.enabled:
            yield
            return
        before = self.session.generation
        with self.compiler.running(model, self.session):
            try:
                yield
            except BaseException:
                self.session.abandon()
                raise
            after = self.session.generation
            # A call that ran one scale is a step of the caller's own loop, not a whole generation.
            if after is not None and after is not before and after.scale > 0:
                self.session.finish()


def _compiled(block: nn.Module, backend: Backend) -> Callable[..., Any]:
    """The block through Dynamo, with room for the graphs of many batch sizes and dtypes."""
    settings: dict[str, Any] = {"backend": backend, "dynamic": None}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        # A setting of Dynamo's own configuration would hold in the thread that made it only.
        settings["recompile_limit"] = _RECOMPILE_LIMIT
    else:
        limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        torch._dynamo.config.recompile_limit = limit
    compiled: Callable[..., Any] = torch.compile(block._call_impl, **settings)
    return compiled


def _check_schedule(options: Options, schedule: tuple[int, ...] | None) -> None:
    if schedule is None:
        return
    scales = len(schedule)
    if options.start_scale is not None and options.start_scale >= scales:
        raise OptionError(
            f"start_scale requires a scale of the model's schedule (0 to {scales - 1}), "
            f"got {options.start_scale}; choose a smaller one"
        )
    if isinstance(options.guidance_until, int) and options.guidance_until >= scales:
        raise OptionError(
            f"guidance_until requires a scale of the model's schedule (1 to {scales - 1}), "
            f"got {options.guidance_until}; choose a smaller one, or leave it out"
        )
    if options.drop_scales >= scales:
        raise OptionError(
            f"drop_scales requires fewer than the {scales} scales of the model's schedule, "
            f"got {options.drop_scales}; at least the first scale has to run"
        )
    ratios = options.keep_ratio_of_scales
    if ratios is not None and len(ratios) != scales:
        raise OptionError(
            f"keep_ratio requires one number per scale, got {len(ratios)} for a schedule of {scales} scales; "
            "give one number, or one for each scale"
        )


def _check_budgets(options: Options, layers: int) -> None:
    budgets = options.layer_budgets
    if budgets is not None and len(budgets) != layers:
        raise OptionError(
            f"layer_budgets requires one number per layer, got {len(budgets)} for {layers} layers; "
            "give one for each layer"
        )
