"""Zero residual codes for tokens that left a scale, without touching the model's source.

VAR-style models turn the sampled code indices of a scale, [samples, N], into vectors with an embedding
(the codebook) and add these to the picture. A forward hook on the embeddings zeroes the vectors of the
tokens that the scale's layers did not compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from toprovar_compiler.backend import Backend


def watch_codes(model: nn.Module, backend: Backend) -> list[RemovableHandle]:
    """Hook every embedding of the model; the backend's session tells codes from other indices."""
    return [
        embedding.register_forward_hook(_zero_pruned(embedding, backend)) for embedding in _embeddings(model)
    ]


def _zero_pruned(embedding: nn.Embedding, backend: Backend) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], vectors: Tensor) -> Tensor | None:
        # A deep copy of the model carries this hook along, but is not the model that runs here.
        if module is not embedding or backend.session is None or not arguments:
            return None
        codes = arguments[0]
        mask = backend.session.see_codes(codes, vectors) if isinstance(codes, Tensor) else None
        return None if mask is None else vectors * mask[..., None].to(vectors.dtype)

    return hook


def _embeddings(model: nn.Module) -> Iterator[nn.Embedding]:
    """Embeddings among the submodules, and in modules that an attribute holds in a tuple or list.

    Official VAR keeps its tokenizer in a tuple so that it is no submodule.
    """
    seen: set[int] = set()
    stack: list[nn.Module] = [model]
    while stack:
        for module in stack.pop().modules():
            if id(module) in seen:
                continue
            seen.add(id(module))
            if isinstance(module, nn.Embedding):
                yield module
            for held in vars(module).values():
                if isinstance(held, (tuple, list)):
                    stack.extend(item for item in held if isinstance(item, nn.Module))
