"""The two functions of ``flash_attn`` that official Infinity imports, with the kernels that PyTorch has.

Infinity's cross-attention calls ``flash_attn``, whose wheels are made for one version of PyTorch.
PyTorch has kernels of FlashAttention 2 inside. Where the package is missing, :func:`provide` gives its
functions with these kernels, behind an operator of ``flash_attn``'s own name and arguments.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types

import torch
from torch import Tensor

NAME = "flash_attn::_flash_attn_varlen_forward"
_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, "
    "SymInt max_seqlen_k, float dropout_p, float softmax_scale, bool causal, SymInt window_size_left=-1, "
    "SymInt window_size_right=-1) -> (Tensor, Tensor)"
)


def provide() -> str:
    """Make ``import flash_attn`` work; which version of it there is, or whose kernels stand for it."""
    if importlib.util.find_spec("flash_attn") is None:
        register()
        package = types.ModuleType("flash_attn")
        package.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)  # others ask for it
        package.__dict__.update(
            __version__=f"kernels of PyTorch {torch.__version__}",
            flash_attn_func=flash_attn_func,
            flash_attn_varlen_kvpacked_func=flash_attn_varlen_kvpacked_func,
        )
        sys.modules["flash_attn"] = package
    return str(importlib.import_module("flash_attn").__version__)


def register() -> None:
    """The operator, for CUDA tensors."""
    if not hasattr(torch.ops.flash_attn, "_flash_attn_varlen_forward"):
        torch.library.define(NAME, _SCHEMA)
        torch.library.register_fake(NAME, _shapes)
    torch.library.impl(NAME, "CUDA", _forward)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None
) -> Tensor:
    """Attention over q, k, v [B, N, H, D]; not called: official Infinity looks at its arguments' names.

    Only where these are those of its own build of the package does it call it.
    """
    raise NotImplementedError("requires the flash_attn package: only packed attention is given here")


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
) -> Tensor:
    """Packed attention of q [T, H, D] over kv [S, 2, H, D]: [T, H, D]."""
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    key, value = kv.unbind(1)
    operator = torch.ops.flash_attn._flash_attn_varlen_forward
    result: Tensor = operator(
        q, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, float(dropout_p), scale, False
    )[0]
    return result


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
) -> tuple[Tensor, Tensor]:
    # Of the operator's arguments the two that official Infinity leaves as they are.
    if dropout_p or (window_size_left, window_size_right) != (-1, -1):
        raise NotImplementedError("requires attention without dropout and windows")
    output, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, 0.0, causal, False,
        scale=softmax_scale,
    )  # fmt: skip
    return output, logsumexp


def _shapes(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
