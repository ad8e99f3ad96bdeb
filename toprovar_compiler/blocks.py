"""Finds the repeated transformer blocks of a model."""

from __future__ import annotations

from torch import nn

from toprovar_compiler.errors import UnsupportedModelError

# Attention needs projections in and out, and a block has a feed-forward part.
_FEWEST_LINEARS = 3
_FEWEST_BLOCKS = 2


def find_blocks(model: nn.Module, path: str | None = None) -> list[nn.Module]:
    """The blocks of the largest list of like modules that look like transformer blocks.

    Args:
        model: any model.
        path: dotted name of the list, where the search would find another one.

    Raises:
        UnsupportedModelError: there is no such list, or nothing at ``path``.
    """
    if path is not None:
        return _blocks_at(model, path)
    found = [blocks for module in model.modules() for blocks in [_repeated(module)] if blocks]
    if not found:
        raise UnsupportedModelError(
            f"requires a list of at least {_FEWEST_BLOCKS} like transformer blocks, found none in "
            f"{type(model).__name__}; name it with blocks='path.to.list'"
        )
    return max(found, key=lambda blocks: sum(p.numel() for block in blocks for p in block.parameters()))


def _repeated(module: nn.Module) -> list[nn.Module]:
    blocks = _out_of_chunks(_like_children(module))
    if len(blocks) < _FEWEST_BLOCKS:
        return []
    return blocks if all(_has_projections(block) for block in blocks) else []


def _like_children(module: nn.Module) -> list[nn.Module]:
    """The children of a list if they are all of one type, else none."""
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return []
    children = list(module.children())
    return children if len({type(child) for child in children}) == 1 else []


def _out_of_chunks(modules: list[nn.Module]) -> list[nn.Module]:
    """The blocks of all chunks where each module is a chunk: it holds one list of like blocks, and no more.

    A model may call the blocks of its chunks itself (Infinity does), and the chunks never.
    """
    inner = [_chunked(module) for module in modules]
    if not all(inner) or len({type(block) for blocks in inner for block in blocks}) != 1:
        return modules
    return _out_of_chunks([block for blocks in inner for block in blocks])


def _chunked(module: nn.Module) -> list[nn.Module]:
    (only, *others) = [*module.children(), None]
    if only is None or others != [None] or next(module.parameters(recurse=False), None) is not None:
        return []
    blocks = _like_children(only)
    return blocks if all(_has_projections(block) for block in blocks) else []


def _has_projections(block: nn.Module) -> bool:
    return sum(isinstance(m, nn.Linear) for m in block.modules()) >= _FEWEST_LINEARS


def _blocks_at(model: nn.Module, path: str) -> list[nn.Module]:
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        lists = [name for name, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))]
        raise UnsupportedModelError(
            f"blocks={path!r} names no module of {type(model).__name__}; "
            f"its lists are {', '.join(lists) or 'none'}"
        ) from error
    children = list(module.children())
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not children:
        raise UnsupportedModelError(
            f"blocks={path!r} requires a list of modules, got {type(module).__name__}"
        )
    return children
