"""Zero residual codes for tokens that left a scale, without touching the model's source.

VAR-style models turn the sampled code indices of a scale, [samples, N], into vectors with an embedding
(the codebook) and add these to the picture. A forward hook on the embeddings zeroes the vectors of the
tokens that the scale's layers did not compute. Tokenizers whose codes are bits (Infinity's) have no codebook;
a module named ``project_out`` gives their vectors, as a picture [samples, ..., H, W, C].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from toprovar_compiler.backend import Backend

_BITS_TO_VECTORS = "project_out"
_PICTURE_RANK = 4


def watch_codes(model: nn.Module, backend: Backend) -> list[RemovableHandle]:
    """Hook what makes vectors of codes; the backend's session tells codes from other indices."""
    hooks = []
    for name, module in _modules(model):
        if isinstance(module, nn.Embedding):
            hooks.append(module.register_forward_hook(_zero_pruned(module, backend)))
        elif name == _BITS_TO_VECTORS:
            hooks.append(module.register_forward_hook(_zero_pruned_bits(module, backend)))
    return hooks


def _zero_pruned(embedding: nn.Embedding, backend: Backend) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], vectors: Tensor) -> Tensor | None:
        # A deep copy of the model carries this hook along, but is not the model that runs here.
        if module is not embedding or backend.session is None or not arguments:
            return None
        codes = arguments[0]
        mask = backend.session.see_codes(codes, vectors) if isinstance(codes, Tensor) else None
        return None if mask is None else vectors * mask[..., None].to(vectors.dtype)

    return hook


def _zero_pruned_bits(projection: nn.Module, backend: Backend) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], vectors: Tensor) -> Tensor | None:
        running = None if backend.session is None else backend.session.position()
        if module is not projection or backend.session is None or running is None:
            return None
        patches = _by_token(vectors, running[0].tokens)
        # The session reads no more of codes than which tokens there are.
        mask = None if patches is None else backend.session.see_codes(patches[..., 0], patches)
        return None if mask is None else vectors * _by_place(mask, vectors)

    return hook


def _by_token(vectors: Tensor, tokens: int) -> Tensor | None:
    """[samples, ..., H, W, C] -> [samples, tokens, side * side * C]; None if these are not that many.

    A token may stand for a square patch of codes.
    """
    if vectors.dim() < _PICTURE_RANK:
        return None
    height, width, channels = vectors.shape[-3:]
    side = math.isqrt(height * width // tokens)
    if not side or side * side * tokens != height * width or height % side or width % side:
        return None
    if vectors.numel() != len(vectors) * height * width * channels:
        return None
    split = vectors.reshape(-1, height // side, side, width // side, side, channels)
    return split.transpose(2, 3).reshape(len(vectors), tokens, -1)


def _by_place(mask: Tensor, vectors: Tensor) -> Tensor:
    """A mask [samples, tokens] spread over the picture: [samples, ..., H, W, 1]."""
    height, width = vectors.shape[-3:-1]
    side = math.isqrt(height * width // mask.shape[1])
    grid = mask.to(vectors.dtype).unflatten(1, (height // side, width // side))
    spread = grid.repeat_interleave(side, 1).repeat_interleave(side, 2)
    by_place: Tensor = spread.reshape(*vectors.shape[:-1], 1)
    return by_place


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Submodules by their own name, also those of modules that an attribute holds in a tuple or list.

    Official VAR keeps its tokenizer in a tuple so that it is no submodule.
    """
    seen: set[int] = set()
    stack: list[nn.Module] = [model]
    while stack:
        for path, module in stack.pop().named_modules():
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path.rpartition(".")[2], module
            for held in vars(module).values():
                if isinstance(held, (tuple, list)):
                    stack.extend(item for item in held if isinstance(item, nn.Module))
