"""Runs blocks for the conditional rows alone and lets their results stand for the unconditional rows too.

Under classifier-free guidance a batch is [all conditional rows, all unconditional rows]. At a scale where the
unconditional branch is replaced, a block gets the first half of every tensor whose first dimension counts the
rows, in its arguments and in the caches that its modules hold, and its results are repeated. The modules that
turn the last block's output into logits get the conditional rows twice, so that guidance has nothing to add.
All later scales are replaced as well, so halves of caches are never missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from toprovar_compiler.batch_rows import Argument, Halves, has_rows, of_tensors, places, token_counts, twice
from toprovar_compiler.block_caches import Attribute, cached, halve_caches, held, holders, put_back
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.generation import Generation
from toprovar_compiler.owner import Owner
from toprovar_compiler.same_results import are_alike, coarsest_eps
from toprovar_compiler.session import Session

_BRANCHES = 2  # conditional and unconditional
_OTHER_GUIDANCE = (
    "the unconditional branch was not replaced: that requires guidance with two rows a sample, and codes "
    "that are seen"
)
_REFUSED = "the unconditional branch was not replaced: on the conditional rows alone a block "
_LOOK_ALIKE = " (the batch has as many rows as the scale has tokens: try another batch size)"


class _Fit(NamedTuple):
    """What a block does wrong on half of the rows, and which argument is not halved; None for nothing."""

    misfit: str | None
    whole: Argument | None


class ConditionalRows:
    """Halves the calls of one model's blocks at the scales where its generation says so.

    Which tensors count rows is seen by their first dimension, which may deceive. So the first halved call of
    every kind is checked beforehand, uncompiled: the conditional rows must come out as in the full batch, all
    arguments halved or all but one (a table of two parts, say, where there are two rows).
    """

    def __init__(self, blocks: Sequence[nn.Module], owner: Owner) -> None:
        self.blocks, self.owner = list(blocks), owner
        self._holders = {block: holders(block) for block in self.blocks}
        self._fits: dict[Hashable, _Fit] = {}
        self._halves = Halves()
        self._halved: defaultdict[nn.Module, set[tuple[nn.Module, str]]] = defaultdict(set)

    def halved(self, block: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, a compiled call of ``block``, that runs half of the rows where that is due."""

        def run(*arguments: Any, **named: Any) -> Any:
            generation = self._replacing(block, arguments, named)
            if generation is None:
                return call(*arguments, **named)
            attributes = self._attributes(block)
            fit = self._fit(block, attributes, arguments, named, generation)
            if fit.misfit is not None:
                return call(*arguments, **named)
            self._halved[block].update(halve_caches(attributes, generation.rows))
            given, given_named = self._halves.of_call(arguments, named, generation.rows, fit.whole)
            generation.halving = generation.halved = True
            try:
                results = call(*given, **given_named)
            finally:
                generation.halving = False
            return self._repeat(results, generation.rows // 2)

        return run

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Hook what runs between the last block and the codes."""
        inside = {module for block in self.blocks for module in block.modules()}
        outside = [
            module
            for module in model.modules()
            if module not in inside and self.blocks[0] not in set(module.modules())
        ]
        return [module.register_forward_pre_hook(self._level(module), with_kwargs=True) for module in outside]

    def _repeat(self, results: Any, half: int) -> Any:
        session = self.owner.session
        assert session is not None, "a generation has a session"
        launcher = session.launcher

        def repeated(leaf: Any) -> Any:
            if not has_rows(leaf, half):
                return leaf
            copies = twice(leaf)
            launcher.repeat(leaf, copies)
            return copies

        return of_tensors(results, repeated)

    def _attributes(self, block: nn.Module) -> list[Attribute]:
        """What the block's modules hold of their own that may be or hold tensors."""
        found = held(self._holders[block])
        if found is None:
            self._holders[block] = holders(block)
            return self._attributes(block)
        return found

    def _replacing(
        self, block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Generation | None:
        """The generation, if a block that gets this is called where unconditional rows are replaced.

        A generation that broke off is told by the number of tokens: the next one starts with fewer. It is
        the schedule's, or where none is stated that of the generation before; a block whose caches are halves
        cannot run on all rows, whatever that had.
        """
        session = self.owner.session
        generation = None if session is None else session.generation
        if session is None or generation is None or generation.finished or generation.rows_per_sample == 1:
            return None
        if not session.policy.may_exit:  # else its loop was asked, before this scale
            generation.replaces_at = _due(session, generation)
        if generation.replaces_at is None:
            return None
        tokens, given = _tokens(session, generation), (*arguments, *named.values())
        expected = tokens is not None and tokens in token_counts(given, generation.rows)
        if not expected and (session.schedule is not None or not generation.halved):
            return None
        if not expected and not self._holds_halves(block, generation.rows):
            return None
        if generation.rows_per_sample != _BRANCHES:
            return self._refuse(session, generation, _OTHER_GUIDANCE)
        return generation

    def _holds_halves(self, block: nn.Module, rows: int) -> bool:
        """Whether caches that were halved are there still, or what they grew into."""
        held_now = (getattr(module, name, None) for module, name in self._halved[block])
        return any(has_rows(leaf, rows // 2) for value in held_now for leaf in _pytree.tree_leaves(value))

    def _fit(
        self,
        block: nn.Module,
        attributes: Sequence[Attribute],
        arguments: Any,
        named: Any,
        generation: Generation,
    ) -> _Fit:
        rows, session = generation.rows, self.owner.session
        assert session is not None, "a generation has a session"
        positional = [places(value, rows) for value in arguments]
        by_name = [(name, places(value, rows)) for name, value in named.items()]
        kind = (*positional, *by_name, *cached(attributes, rows))
        if kind not in self._fits:
            self._fits[kind] = _find_fit(block, attributes, arguments, named, rows)
        fit = self._fits[kind]
        if fit.misfit is not None:
            hint = _LOOK_ALIKE if rows == _tokens(session, generation) else ""
            self._refuse(session, generation, f"{_REFUSED}{fit.misfit}{hint}")
        return fit

    def _level(self, watched: nn.Module) -> Callable[..., tuple[Any, Any] | None]:
        """The conditional rows twice, for a module that gets the tokens between the last block and the codes.

        What else such a module gets counts rows too. Other modules may belong to the next generation already.
        """

        def hook(module: nn.Module, arguments: Any, named: Any) -> tuple[Any, Any] | None:
            session, given = self.owner.session, (arguments, named)
            generation = None if session is None else session.generation
            # A deep copy of the model carries this hook along, but is not the model that runs here.
            if module is not watched or generation is None or not generation.halved:
                return None
            rows = generation.rows
            if not generation.between_blocks_and_codes() or generation.tokens not in token_counts(
                given, rows
            ):
                return None
            levelled: tuple[Any, Any] = _pytree.tree_map(
                lambda leaf: twice(leaf[: rows // 2]) if has_rows(leaf, rows) else leaf, given
            )
            return levelled

        return hook

    @staticmethod
    def _refuse(session: Session, generation: Generation, reason: str) -> None:
        """Run all rows at this scale after all.

        Raises:
            UnsupportedGraphError: under ``strict=True``; or other blocks have halved their caches already.
        """
        generation.refused_at, generation.replaces_at = generation.replaces_at, None
        if generation.halved:
            raise UnsupportedGraphError(
                f"{reason}, after others could; use a decision model that skips scales only"
            )
        session.fall_back(reason)


def _due(session: Session, generation: Generation) -> int | None:
    """The scale of the next block call if the generation goes on and that scale is to be replaced."""
    scale = generation.scale + generation.next_scale_is_due
    due = scale != generation.refused_at and session.policy.replaces_unconditional(scale)
    return scale if due else None


def _tokens(session: Session, generation: Generation) -> int | None:
    """N of the scale that is replaced; None where there is none, or it is not known."""
    schedule, scale = session.schedule or generation.earlier, generation.replaces_at
    return None if scale is None or scale >= len(schedule) else schedule[scale]


def _find_fit(
    block: nn.Module, attributes: Sequence[Attribute], arguments: Any, named: Any, rows: int
) -> _Fit:
    """All arguments are halved if that fits, else all but one of those that seem to have rows."""
    misfit = _misfit(block, attributes, arguments, named, rows, None)
    if misfit is None:
        return _Fit(None, None)
    for name, value in (*enumerate(arguments), *named.items()):
        if places(value, rows) and _misfit(block, attributes, arguments, named, rows, name) is None:
            return _Fit(None, name)
    return _Fit(misfit, None)


def _misfit(
    block: nn.Module,
    attributes: Sequence[Attribute],
    arguments: Any,
    named: Any,
    rows: int,
    whole: Argument | None,
) -> str | None:
    """What a block does wrong on half of its rows; None where these come out as in the full batch.

    It is run twice, uncompiled; its ``attributes`` are as before afterwards.
    """
    for path, _, _, value in attributes:
        if isinstance(value, (list, dict)) and any(has_rows(x, rows) for x in _pytree.tree_leaves(value)):
            return f"may change {path.lstrip('.')} in place, which cannot be undone"
    given, given_named = Halves().of_call(arguments, named, rows, whole)
    try:
        full = block.forward(*arguments, **named)
        put_back(attributes)
        halve_caches(attributes, rows)
        half = block.forward(*given, **given_named)
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
        return f"raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    finally:
        put_back(attributes)
    wanted, got, eps = _pytree.tree_leaves(full), _pytree.tree_leaves(half), coarsest_eps(block)
    alike = len(wanted) == len(got) and all(
        _is_half(a, b, rows, eps) for a, b in zip(wanted, got, strict=True)
    )
    return None if alike else "gives other results"


def _is_half(full: Any, half: Any, rows: int, eps: float) -> bool:
    """Whether ``half`` is the first half of the rows of ``full``, or the same where there are no rows."""
    is_of_rows = has_rows(full, rows)
    if is_of_rows != has_rows(half, rows // 2):
        return False
    return are_alike(full[: rows // 2] if is_of_rows else full, half, eps)
