"""The Dynamo backend: graph in, runtime out; what cannot be rewritten runs as plain Inductor."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, fx, nn
from torch._dynamo.eval_frame import cached_backends
from torch._inductor import list_mode_options

from toprovar_compiler import dynamo_entry
from toprovar_compiler.capture import capture, needs_gradients
from toprovar_compiler.errors import NoAttentionError, UnsupportedGraphError
from toprovar_compiler.graph_runtime import GraphRuntime
from toprovar_compiler.options import Mode, parse_options
from toprovar_compiler.registry import REGISTRY
from toprovar_compiler.session import Session
from toprovar_compiler.shared_variants import SharedVariants
from toprovar_compiler.variants import COMPILE_LOCK, Compiled, compile_here


class Backend:
    """A ``torch.compile`` backend that carries out what its session decides.

    Args:
        session: of a plain function, for good; None for a model's blocks, where the compilation that runs
            sets ``session`` for the time of its call.
        mode: of ``torch.compile``.
        blocks: of that model; not kept alive, since Dynamo keeps what was compiled of them, and thereby this.
    """

    def __init__(self, session: Session | None, mode: Mode, blocks: Iterable[nn.Module] = ()) -> None:
        self.session = session
        self._blocks = [weakref.ref(block) for block in blocks]
        self.settings: Mapping[str, Any] = list_mode_options(mode)
        self.variants = SharedVariants()
        self._compiles_blocks = session is None
        self.__name__ = "toprovar"

    def current_session(self) -> Session:
        assert self.session is not None, "a compiled block ran outside its compilation"
        return self.session

    def buffers(self) -> Iterator[Tensor]:
        """Of all blocks."""
        for held in self._blocks:
            block = held()
            if block is not None:
                yield from block.buffers()

    def reset(self) -> None:
        """``torch._dynamo.reset()``: nothing that was compiled is used again."""
        self.variants = SharedVariants()

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        # At a reset Dynamo tells those that it knows, and forgets them.
        cached_backends.setdefault(id(self), cast(Any, self))
        with COMPILE_LOCK:
            try:
                if needs_gradients(gm):
                    raise UnsupportedGraphError(
                        "needs gradients: toprovar is for inference, use torch.no_grad()"
                    )
                captured = capture(gm)
            except UnsupportedGraphError as error:
                return self._unsupported(compile_here(gm, example_inputs, self.settings), error)
            try:
                return GraphRuntime(captured, self)
            except UnsupportedGraphError as error:
                return self._unsupported(compile_here(captured, example_inputs, self.settings), error)

    def _unsupported(self, compiled: Compiled, error: UnsupportedGraphError) -> Compiled:
        """The graph as plain Inductor has it, its reason counted; under ``strict`` its call raises.

        Raised from the call, because Dynamo would wrap what a backend raises. A function's glue code
        without attention is no reason to refuse it.
        """
        session = self.current_session()
        session.graph_compiled()
        glue = isinstance(error, NoAttentionError) and not self._compiles_blocks
        if session.options.strict and not glue:
            return _refusal(error)
        session.note(str(error))
        return compiled


def _refusal(error: UnsupportedGraphError) -> Compiled:
    def refuse(*arguments: Any) -> Sequence[Any]:
        raise UnsupportedGraphError(f"strict=True, and a graph cannot be pruned: {error}")

    return refuse


def toprovar_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> Compiled:
    """Entry point of the group ``torch_dynamo_backends``.

    ``torch.compile`` reaches this function only where :mod:`toprovar_compiler.dynamo_entry` did not take
    over (a torch whose internals differ): each graph then has a session of its own.

    Raises:
        OptionError: an option is unknown or out of range.
    """
    parsed = parse_options({**(options or {}), **unknown})
    session = Session("torch.compile graph", parsed, schedule=None)
    REGISTRY.add(session)
    return Backend(session, parsed.mode)(gm, example_inputs)


dynamo_entry.install()
