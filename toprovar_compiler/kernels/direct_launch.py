"""Launches what Triton compiled without Triton's binding of arguments, most of what a launch costs the host.

How Triton launches a compiled kernel is not documented, so this is for the versions whose sources were read, and
what the compiled code says of its parameters is compared with what it would be given. Where anything differs
there is no direct launch, a warning says why, and Triton launches as ever.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

# Kernels take the scale in base 2.
LOG2_E = math.log2(math.e)
_VERSIONS = ("3.4", "3.5", "3.6", "3.7")
_MOST_PROGRAMS = 1024
_MOST_TILES = 4096
_POINTER, _DESCRIPTOR = 8, 128
_BYTES = {"i32": 4, "i64": 8, "fp32": 4, "nvTmaDesc": _DESCRIPTOR}
# What stands for a tensor descriptor of rank 4 in a launch: itself, its shape and its strides.
_DESCRIBED = ("nvTmaDesc", *("i32",) * 4, *("i64",) * 4)
_SCRATCH_POINTERS = 2  # which Triton adds, at most
_PARAMETER = re.compile(r"\.param (?:\.align \d+ )?\.[a-z](\d+)[^,\n]*?(?:\[(\d+)\])?,?$", re.MULTILINE)


class Launched(NamedTuple):
    """A launch that was made: what Triton compiled for it, its grid, and its arguments after the tensors."""

    compiled: Any
    programs: int
    numbers: tuple[Any, ...]


class Attended(NamedTuple):
    """The launches of a call. The tensors of the first are q, k, v, bias, out, entropy and the two of the parts of
    the keys; those of `join`, where there are parts, are the parts', out and entropy."""

    attend: Launched
    scale_at: int
    """Which of its numbers is the scale, in base 2."""
    splits: int
    join: Launched | None
    descriptors: tuple[Callable[[int], Any], ...] = ()
    """Of q, k and v, each for an address, where the kernel takes descriptors."""


class DirectLaunch(NamedTuple):
    """How to launch a compiled kernel."""

    run: Callable[[int, int, tuple[Any, ...]], None]
    """Of programs, stream and arguments: addresses, encoded descriptors, numbers, and anything for each constant."""
    current_stream: Callable[[int], int]
    """Of a device's index."""
    encodings: tuple[Any, ...]
    """How Triton encodes each descriptor among the arguments; they come first."""


@dataclass(frozen=True, eq=False)
class Operand:
    """Where the tiles of a tensor `[B, H, N, D]` lie, but for its address; equal to itself alone, to be found fast."""

    descriptor_at: Callable[[int], Any]
    """The descriptor, for an address."""
    encoding: Any
    """Of :class:`DirectLaunch`."""


@lru_cache(_MOST_TILES)
def encoded(operand: Operand, address: int) -> tuple[Any, ...]:
    """The arguments that stand for an operand at an address. They are numbers: no memory is kept alive by them."""
    from triton.backends.nvidia.driver import make_tensordesc_arg

    return tuple(make_tensordesc_arg(operand.descriptor_at(address), operand.encoding))


@cache
def direct_unavailable() -> str | None:
    """Why Triton's own binding of arguments serves every launch; None where it need not."""
    try:
        import triton
    except ImportError:
        return "direct launches need Triton"
    if torch.version.hip is not None:
        return "direct launches need a GPU of NVIDIA's"
    if not triton.__version__.startswith(tuple(f"{version}." for version in _VERSIONS)):
        return f"direct launches need Triton {', '.join(_VERSIONS[:-1])} or {_VERSIONS[-1]}, got {triton.__version__}"
    return None


@lru_cache(_MOST_PROGRAMS)
def direct(compiled: Any) -> DirectLaunch | None:
    """How to launch what `kernel[grid](...)` returned; None where it was not compiled or is not as expected.

    The first call for a program that is not as expected warns.
    """
    if compiled is None:  # Triton's interpreter
        return None
    reason = direct_unavailable()
    if reason is None:
        try:
            return _direct(compiled)
        # Whatever the installed Triton has or does otherwise, it launches itself.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"toprovar: attention is launched through Triton's binding of arguments, which costs the host time: {reason}",
        stacklevel=3,
    )
    return None


def watched(runtime: Any) -> bool:
    """Whether somebody (a profiler) asked to be told of every launch, which a direct one does not do.

    `runtime` is Triton's `knobs.runtime`.
    """
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    # Triton 3.4 has a function or None, newer ones have a list of functions.
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def _direct(compiled: Any) -> DirectLaunch:
    from triton.runtime import driver

    compiled.run  # noqa: B018  (loads the code, if it is not yet)
    encodings = tuple(getattr(compiled.metadata, "tensordesc_meta", None) or ())
    types = tuple(_expanded(compiled.src.signature.values()))
    _require_parameters(compiled.asm["ptx"], types)
    # The launcher that Triton made encodes every descriptor in every launch; this one takes them encoded.
    source = SimpleNamespace(signature=dict(enumerate(types)), constants={})
    launcher = driver.active.launcher_cls(source, compiled.metadata._replace(tensordesc_meta=None))
    run = _runner(launcher, compiled)
    # A grid of no programs: arguments are read, and nothing is launched.
    run(0, 0, tuple(map(_stand_in, types)))
    return DirectLaunch(run, driver.active.get_current_stream, encodings)


def _runner(launcher: Any, compiled: Any) -> Callable[[int, int, tuple[Any, ...]], None]:
    """What the launcher does in every launch where the kernel needs no scratch memory and nobody watches."""
    scratch_sizes = [getattr(launcher, f"{kind}_scratch_size", None) for kind in ("global", "profile")]
    if any(scratch_sizes):
        raise RuntimeError(f"the code needs {scratch_sizes} bytes of scratch memory")
    launch = launcher.launch
    scratch = (None,) * (2 - scratch_sizes.count(None))
    options = (compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl)
    described = (compiled.packed_metadata, None, None, None)
    if hasattr(launcher, "arg_annotations"):  # since Triton 3.7
        fixed = (*options, *described, *scratch, launcher.arg_annotations, launcher.kernel_signature)
        return lambda programs, stream, arguments: launch(programs, 1, 1, stream, *fixed, arguments)
    fixed = (*options, *scratch, *described)
    return lambda programs, stream, arguments: launch(programs, 1, 1, stream, *fixed, *arguments)


def _stand_in(kind: str) -> Any:
    """An argument of this type."""
    if kind == "nvTmaDesc":
        from triton.backends.nvidia.driver import PyCUtensorMap

        return PyCUtensorMap()
    return 0.0 if kind == "fp32" else 0


def _expanded(signature: Any) -> Iterator[str]:
    for kind in signature:
        yield from _DESCRIBED if kind.startswith("tensordesc") else (kind,)


def _require_parameters(ptx: str, types: tuple[str, ...]) -> None:
    """Raise unless the compiled code's parameters are those that arguments of these types fill."""
    given = [_POINTER if kind[0] == "*" else _BYTES[kind] for kind in types if kind != "constexpr"]
    found = parameter_sizes(ptx)
    scratch = found[len(given) :]
    if found[: len(given)] != given or len(scratch) > _SCRATCH_POINTERS or set(scratch) - {_POINTER}:
        raise RuntimeError(f"the code has parameters of {found} bytes, got arguments of {given}")


def parameter_sizes(ptx: str) -> list[int]:
    """Bytes of each parameter of a kernel's code, Triton's scratch memory last."""
    entry = ptx[ptx.index(".entry") :]
    found = _PARAMETER.findall(entry[: entry.index(")")])
    return [int(count) if count else int(bits) // 8 for bits, count in found]
