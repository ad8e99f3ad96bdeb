"""Whether a block reads what lies behind the words of its packed prompts.

Copies of it are run, uncompiled, with copies of what it is given: with the words as they came, and with
others behind them, once zeros and once large numbers. The last two have the same sizes and run the same
kernels, so that they agree to the bit where nothing of what is behind is read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from toprovar_compiler.packed_words import is_packed, of_padded, pad, room_for
from toprovar_compiler.same_results import are_alike, coarsest_eps


def why_not_padded(
    block: nn.Module, blocks: Iterable[nn.Module], arguments: Sequence[Any], named: dict[str, Any]
) -> str | None:
    """What ``block`` does wrong with padded words; None where it gives the same results.

    Args:
        blocks: of the same model, whose weights are not copied.
    """
    for module in block.modules():
        # A copy of such a function is the function itself, which runs the block and not its copy.
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            return "runs functions that were attached to it: it cannot be tried out"
    weights = {id(weight): weight for each in blocks for weight in each.parameters()}
    try:
        came, zeros, large = (
            _results(block, dict(weights), arguments, named, change) for change in (_as_is, _zeros, _large)
        )
        eps = coarsest_eps(block)
        alike = len(came) == len(zeros) == len(large) and all(
            are_alike(one, other, eps) and _are_equal(other, third)
            for one, other, third in zip(came, zeros, large, strict=True)
        )
    except Exception as error:  # a model's own code may raise anything, and so may copying and comparing
        return f"raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None if alike else "gives other results"


def _results(block: nn.Module, known: dict[int, Any], arguments: Any, named: Any, change: Any) -> list[Any]:
    """Of a copy of the block, with the same random numbers each time; ``known`` is not copied."""
    twin, own_arguments, own_named = copy.deepcopy((block, arguments, named), known)
    given = [change(value) for value in own_arguments]
    given_named = {name: change(value) for name, value in own_named.items()}
    tensors = [leaf for leaf in _pytree.tree_leaves((given, given_named)) if isinstance(leaf, Tensor)]
    with torch.random.fork_rng({each.device.index for each in tensors if each.is_cuda}):
        return _pytree.tree_leaves(twin.forward(*given, **given_named))


def _as_is(value: Any) -> Any:
    return value


def _zeros(value: Any) -> Any:
    return _padded(value, 0.0)


def _large(value: Any) -> Any:
    """Larger than all words, up and down, and not 0 in sum."""
    if not is_packed(value):
        return value
    words = value[0]
    rows = _room(words) - len(words)
    signs = torch.tensor([1.0, -3.0], dtype=words.dtype, device=words.device).repeat(rows)[:rows, None]
    return _padded(value, signs * (1.0 + 2.0 * words.abs().max()))


def _padded(value: Any, behind: float | Tensor) -> Any:
    if not is_packed(value):
        return value
    return of_padded(value, pad(value[0], _room(value[0]), behind=behind))


def _room(words: Tensor) -> int:
    """With at least one row behind them."""
    return room_for(len(words) + 1)


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
