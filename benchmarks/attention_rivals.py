"""What attention with entropy is measured against, and its own variants: how each is called.

A contender takes q [B, H, Nq, D], k and v [B, H, Nk, D], all contiguous, and computes attention without bias.
What is not installed is named with the reason, never left out in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention_shapes import Shape
from benchmarks.measure import Call
from toprovar_compiler.errors import KernelUnavailableError
from toprovar_compiler.kernels import ops  # noqa: F401  (registers the operator)

OURS, PORTABLE, WITHOUT_ENTROPY = "toprovar", "toprovar, portable", "toprovar without entropy"
FA2, FA3, FA3_SPLITS = "FlashAttention 2", "FlashAttention 3", "FlashAttention 3, splits chosen"
CUDNN, FLEX, NAIVE, SDPA = "cuDNN", "flex_attention", "naive entropy", "SDPA"
OWN = (OURS, PORTABLE)
# Attention alone, whose best is what the operator is measured against.
RIVALS = (FA2, CUDNN, FA3, FA3_SPLITS, FLEX, SDPA)

_FA3_PACKAGE = "fa3-fwd"
_FA3_CHOOSES_SPLITS = 0
_FLEX_GRAPHS = 64  # a graph per shape
# A contender may differ from the first by so much of its largest output: rounding to bfloat16 gives about
# 1 %, another layout 100 %.
_AGREEMENT = 0.1

Bind = Callable[[Tensor, Tensor, Tensor], Call]


class Contender(NamedTuple):
    """A way to compute attention.

    ``bind`` gives the call for its operands; ``around`` is entered once around all calls, as the choice of a
    backend, which is no part of the time.
    """

    name: str
    bind: Bind
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


class Field(NamedTuple):
    """Those that run here, and why the others do not."""

    contenders: tuple[Contender, ...]
    absent: dict[str, str]


def operands(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of standard normal numbers."""
    batch, heads, queries, keys, size = shape
    generator = torch.Generator(device).manual_seed(0)
    made = [
        torch.randn(batch, heads, n, size, generator=generator, device=device, dtype=torch.float32).to(dtype)
        for n in (queries, keys, keys)
    ]
    return made[0], made[1], made[2]


def on_cpu() -> Field:
    """The operator and torch's own attention."""
    return Field((Contender(OURS, _operator), Contender(SDPA, _sdpa)), {})


def on_gpu() -> Field:
    """All that run on the current GPU but flex_attention."""
    fa3, why_no_fa3 = _flash_attention_3()
    return Field(
        (
            Contender(OURS, _operator),
            Contender(PORTABLE, _portable),
            Contender(FA2, _sdpa, lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)),
            Contender(CUDNN, _sdpa, lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION)),
            *fa3,
            Contender(NAIVE, _naive),
            Contender(WITHOUT_ENTROPY, _without_entropy),
        ),
        why_no_fa3,
    )


def flex() -> Contender:
    """flex_attention, compiled for each shape anew: seconds a shape."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return Contender(
        FLEX,
        lambda q, k, v: lambda: compiled(q, k, v),
        lambda: torch._dynamo.config.patch(recompile_limit=_FLEX_GRAPHS),
    )


def supporting(
    contenders: Iterable[Contender], q: Tensor, k: Tensor, v: Tensor
) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls on these operands, by name, and why a contender does not support them.

    Raises:
        RuntimeError: a contender computes something else than the first. What ours raise, as it is.
    """
    calls: dict[str, Call] = {}
    refused: dict[str, str] = {}
    reference: Tensor | None = None
    for name, bind, around in contenders:
        call = bind(q, k, v)
        try:
            with around():
                out = call()
            torch.cuda.synchronize()
        # Rivals fail in ways of their own where they do not support a shape; ours has to support them all.
        except Exception as error:
            if name in OWN:
                raise
            refused[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        out = out[0] if isinstance(out, tuple) else out
        if reference is None:
            reference = out
        check_agreement(name, out, reference)
        calls[name] = _within(around, call)
    torch.cuda.empty_cache()
    return calls, refused


def check_agreement(name: str, out: Tensor, reference: Tensor) -> None:
    """Raises:
    RuntimeError: a contender's output is not attention's.
    """
    off = (out.float() - reference.float()).abs().max().item()
    most = _AGREEMENT * reference.float().abs().max().item()
    if not off <= most:
        raise RuntimeError(
            f"{name} requires an output within {most:.2g} of the first contender's, got {off:.2g}; "
            "it is called wrongly, or is wrong"
        )


def naive_entropy(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """SDPA for the output, and the whole attention matrix for the entropy."""
    out = scaled_dot_product_attention(q, k, v)
    log_weights = torch.log_softmax((q @ k.mT).float() / math.sqrt(q.shape[-1]), -1)
    return out, -(log_weights.exp() * log_weights).sum(-1)


def _within(around: Callable[[], AbstractContextManager[Any]], call: Call) -> Call:
    """For captures and warm-ups, whose host time does not count."""

    def within() -> Any:
        with around():
            return call()

    return within


def _operator(q: Tensor, k: Tensor, v: Tensor) -> Call:
    operator = torch.ops.toprovar.flash_attention_entropy
    return lambda: operator(q, k, v, None, None)


def _portable(q: Tensor, k: Tensor, v: Tensor) -> Call:
    """The portable Triton kernel: given tiles, the launcher never takes the Hopper kernel."""
    from toprovar_compiler.kernels.triton_attention import attention_entropy_triton, choose_tiles

    tiles = choose_tiles(q.shape[3], q.shape[2], q.dtype)
    return lambda: attention_entropy_triton(q, k, v, tiles=tiles)


def _without_entropy(q: Tensor, k: Tensor, v: Tensor) -> Call:
    """The Hopper kernel's variant that computes no entropy, as the operator would run it.

    Raises:
        KernelUnavailableError: the operator takes the portable kernel, which has no such variant.
    """
    from toprovar_compiler.kernels.hopper_attention import choose_plan, launch

    chosen = choose_plan(q, k, v)

    def call() -> Tensor:
        if chosen is None:
            raise KernelUnavailableError("the portable kernel, which the operator takes here, has no variant")
        plan, splits = chosen
        batch, heads, queries, size = q.shape
        out = q.new_empty((batch, queries, heads, size)).transpose(1, 2)
        entropy = q.new_empty((batch, heads, queries), dtype=torch.float32)
        launch(plan, splits, q, k, v, None, out, entropy, 1 / math.sqrt(size), with_entropy=False)
        return out

    return call


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Call:
    return lambda: scaled_dot_product_attention(q, k, v)


def _naive(q: Tensor, k: Tensor, v: Tensor) -> Call:
    return lambda: naive_entropy(q, k, v)


def _flash_attention_3() -> tuple[tuple[Contender, ...], dict[str, str]]:
    """Twice: as called by default, and with its own choice of splits, which helps where queries are few."""
    try:
        from fa3_fwd_interface import flash_attn_func
    # A wheel that was built for another torch or CUDA fails in ways of its own.
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        why = f"{_FA3_PACKAGE} cannot be imported ({type(error).__name__}: {error})"
        return (), {FA3: why, FA3_SPLITS: why}

    def bind(**choices: int) -> Bind:
        def bound(q: Tensor, k: Tensor, v: Tensor) -> Call:
            by_token = [x.transpose(1, 2) for x in (q, k, v)]
            return lambda: flash_attn_func(*by_token, **choices).transpose(1, 2)

        return bound

    return (Contender(FA3, bind()), Contender(FA3_SPLITS, bind(num_splits=_FA3_CHOOSES_SPLITS))), {}


def rival_versions() -> dict[str, str | None]:
    """Versions of what the environment's record does not name; None where absent."""
    try:
        fa3 = metadata.version(_FA3_PACKAGE)
    except metadata.PackageNotFoundError:
        fa3 = None
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {_FA3_PACKAGE: fa3, "cudnn": None if cudnn is None else str(cudnn)}
