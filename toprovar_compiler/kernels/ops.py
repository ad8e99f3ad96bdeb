"""The operators of the `toprovar` namespace: schemas, dispatch, fakes and vmap rules.

Importing this module registers, once a process:

- `toprovar::flash_attention_entropy(q, k, v, bias, scale) -> (out, entropy)`
- `toprovar::entropy_gate(entropy, keep) -> index`

They are registered through `torch.library.Library`, whose calls cost a fifth of a `custom_op`'s. Both are
for inference: the attention refuses inputs that require grad, and the gate returns integers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from toprovar_compiler.errors import KernelUnavailableError
from toprovar_compiler.kernels.checks import check_attention, check_gate
from toprovar_compiler.kernels.cpu_attention import attention_entropy_cpu
from toprovar_compiler.kernels.cpu_native import attention_entropy_native, native, require_native
from toprovar_compiler.kernels.gate import entropy_gate
from toprovar_compiler.kernels.reference import attention_entropy_reference

_MODULE = "toprovar_compiler.kernels.ops"
if __name__ != _MODULE:
    # Through the repository's `kernels` link this file has a second name, under which it would register
    # the operators again.
    raise ImportError(f"requires the name {_MODULE}, got {__name__}; import {_MODULE} instead")

AttentionEntropy = Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], tuple[Tensor, Tensor]]

_LIBRARY = torch.library.Library("toprovar", "DEF")
_LIBRARY.define(
    "flash_attention_entropy(Tensor q, Tensor k, Tensor v, Tensor? bias, float? scale) -> (Tensor, Tensor)"
)
_LIBRARY.define("entropy_gate(Tensor entropy, SymInt keep) -> Tensor")


def implementation(name: str) -> AttentionEntropy:
    """The implementation of `flash_attention_entropy` with this name, for calls outside the dispatcher.

    "cpu-native" (one fused kernel in C++; float64, which it lacks, runs as "cpu"), "cpu" (torch operations
    on tiles), "triton" (one fused kernel) and "reference" (the full matrix) take and return what the
    operator does and check their arguments alike. On CPU the operator is "cpu-native", or "cpu" where that
    cannot be compiled.

    Raises:
        KernelUnavailableError: no such name, or what it needs (Triton, a C++ compiler) is not installed.
    """
    if name not in _IMPLEMENTATIONS:
        raise KernelUnavailableError(
            f"requires an implementation among {', '.join(sorted(_IMPLEMENTATIONS))}, got {name!r}; "
            "pick one of those"
        )
    if name == "triton":
        _triton()
    if name == "cpu-native":
        require_native()
    return _IMPLEMENTATIONS[name]


@cache
def _triton() -> AttentionEntropy:
    """The Triton launcher, imported on first use since CPU installations have no Triton."""
    try:
        import triton  # noqa: F401
    except ImportError as missing:
        raise KernelUnavailableError(
            "the triton implementation requires the triton package, got none in this environment; "
            "install triton 3.4 or newer, or run on CPU"
        ) from missing
    from toprovar_compiler.kernels.triton_attention import attention_entropy_triton

    return attention_entropy_triton


def _attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    check_attention(q, k, v, bias, scale)
    return attention_entropy_cpu(q, k, v, bias, scale)


def _attention_native(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    check_attention(q, k, v, bias, scale)
    if q.dtype == torch.float64 or native().library is None:
        return attention_entropy_cpu(q, k, v, bias, scale)
    return attention_entropy_native(q, k, v, bias, scale)


def _attention_triton(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    return _triton()(q, k, v, bias, scale)


def _attention_reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    check_attention(q, k, v, bias, scale)
    return attention_entropy_reference(q, k, v, bias, scale)


_IMPLEMENTATIONS: dict[str, AttentionEntropy] = {
    "cpu": _attention_cpu,
    "cpu-native": _attention_native,
    "triton": _attention_triton,
    "reference": _attention_reference,
}


def _attention_fake(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    check_attention(q, k, v, bias, scale)
    batch, heads, queries, _ = q.shape
    out = q.new_empty((batch, queries, heads, v.shape[-1])).transpose(1, 2)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return out, q.new_empty((batch, heads, queries), dtype=dtype)


def _attention_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float | None,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Fold the mapped dimension into the batch, run once, unfold."""
    size = info.batch_size
    q, k, v = (_fold(x, dim, size) for x, dim in zip((q, k, v), in_dims, strict=False))
    if bias is not None:
        bias = _fold_bias(bias, in_dims[3], size, q.shape[0] // size)
    out, entropy = torch.ops.toprovar.flash_attention_entropy(q, k, v, bias, scale)
    return (out.unflatten(0, (size, -1)), entropy.unflatten(0, (size, -1))), (0, 0)


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """`[.., V, ..]` with V at `dim`, or `[B, ...]` shared by all -> `[V * B, ...]`."""
    mapped = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return mapped.flatten(0, 1)


def _fold_bias(bias: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    """The bias for the folded batch: `[V * B or 1, h, q, k]`, whatever dimensions it came with."""
    mapped = bias.unsqueeze(0) if dim is None else bias.movedim(dim, 0)
    missing = 5 - mapped.dim()
    mapped = mapped.reshape(mapped.shape[0], *(1,) * missing, *mapped.shape[1:])
    if mapped.shape[0] == 1 and mapped.shape[1] == 1:
        return mapped.squeeze(0)
    return mapped.expand(size, batch, *mapped.shape[2:]).flatten(0, 1)


def _gate(entropy: Tensor, keep: int) -> Tensor:
    check_gate(entropy, keep)
    return entropy_gate(entropy, keep)


def _gate_fake(entropy: Tensor, keep: int) -> Tensor:
    check_gate(entropy, keep)
    return entropy.new_empty((entropy.shape[0], keep), dtype=torch.int64)


def _gate_vmap(info: Any, in_dims: tuple[int | None, ...], entropy: Tensor, keep: int) -> tuple[Tensor, int]:
    folded = _fold(entropy, in_dims[0], info.batch_size)
    index = torch.ops.toprovar.entropy_gate(folded, keep)
    return index.unflatten(0, (info.batch_size, -1)), 0


_LIBRARY.impl("flash_attention_entropy", _attention_native, "CPU")
_LIBRARY.impl("flash_attention_entropy", _attention_triton, "CUDA")
_LIBRARY.impl("entropy_gate", _gate, "CPU")
_LIBRARY.impl("entropy_gate", _gate, "CUDA")
torch.library.register_fake("toprovar::flash_attention_entropy", _attention_fake, lib=_LIBRARY)
torch.library.register_fake("toprovar::entropy_gate", _gate_fake, lib=_LIBRARY)
torch.library.register_vmap("toprovar::flash_attention_entropy", _attention_vmap, lib=_LIBRARY)
torch.library.register_vmap("toprovar::entropy_gate", _gate_vmap, lib=_LIBRARY)
