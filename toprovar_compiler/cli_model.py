"""Loads the model that a command works on, given as ``module:function``, and paints with it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toprovar_compiler.errors import MissingDependencyError, OptionError, UnsupportedModelError

DEFAULT_MODEL = "examples.emojivar:load"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PICTURE_DIMENSIONS = 4
_COLOURS = 3


@dataclass(frozen=True)
class PaintingSettings:
    """What a command paints, with which model, and where it writes; ``options`` are toprovar's."""

    model: str
    device: str
    dtype: str | None
    prompts: tuple[str, ...]
    seed: int
    options: Mapping[str, Any]
    out: Path


def load_model(reference: str, device: str, dtype: str | None) -> nn.Module:
    """Call ``function(device=..., dtype=...)`` of ``module``; the working directory is on the import path.

    Args:
        reference: ``module:function``. The module returned must have ``generate(prompts, seed=...)``, which
            gives pictures [B, 3, H, W] in [0, 1].
        device: "cpu", "cuda", "cuda:1", ..., or "auto": a GPU if torch sees one.
        dtype: a key of :data:`DTYPES`; None: float32 on a CPU, else bfloat16.

    Raises:
        OptionError: malformed reference or device.
        MissingDependencyError: the module needs a package that is not installed.
        UnsupportedModelError: there is no such module or function, it failed, or it gave something else.
    """
    chosen = choose_device(device)
    if dtype is None:
        dtype = "float32" if chosen.type == "cpu" else "bfloat16"
    load = find_function(reference, "--model", DEFAULT_MODEL)
    try:
        model = load(device=chosen, dtype=DTYPES[dtype])
    except Exception as error:
        raise UnsupportedModelError(f"model {reference} failed to load: {error}") from error
    if not isinstance(model, nn.Module) or not callable(getattr(model, "generate", None)):
        raise UnsupportedModelError(
            f"model {reference} requires a function that returns a torch.nn.Module with a method "
            f"generate(prompts, seed=...), got {type(model).__name__}; pass another --model"
        )
    return model


def choose_device(name: str) -> torch.device:
    """The device of that name, "auto" resolved.

    Raises:
        OptionError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device requires auto, cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"--device {name} requires a CUDA device that torch {torch.__version__} can use, got "
            f"{torch.cuda.device_count()} of them; use --device cpu, and see 'toprovar doctor'"
        )
    return device


def paint(model: nn.Module, prompts: Sequence[str], seed: int) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1], one for each of the B prompts.

    Raises:
        UnsupportedModelError: the model gives something else.
    """
    generate: Any = model.generate
    pictures = generate(list(prompts), seed=seed)
    if (
        not isinstance(pictures, Tensor)
        or pictures.dim() != _PICTURE_DIMENSIONS
        or pictures.shape[1] != _COLOURS
        or pictures.shape[0] != len(prompts)
    ):
        got = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise UnsupportedModelError(
            f"generate(prompts, seed=...) requires to give pictures [B, 3, H, W], got {got} for "
            f"{len(prompts)} prompt(s); "
            "let the function of --model wrap it"
        )
    return pictures


def find_function(reference: str, option: str, example: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; the working directory is on the import path.

    Args:
        reference: what was given.
        option: by which option, for messages.
        example: a reference that would do.

    Raises:
        OptionError: malformed.
        MissingDependencyError: the module needs a package that is not installed.
        UnsupportedModelError: there is no such module or function.
    """
    module_name, colon, function_name = reference.partition(":")
    if not (module_name and colon and function_name):
        raise OptionError(f"{option} requires module:function, got {reference!r}; e.g. {example}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UnsupportedModelError(
                f"requires the module {module_name!r} of {option}, got none from {here} or the installed "
                f"packages; run from a checkout of the repository, or pass {option} module:function"
            ) from error
        raise MissingDependencyError(
            f"{option.lstrip('-')} {reference} requires the package {error.name!r}, got none; install it "
            "(the examples' own come with: pip install 'toprovar-compiler[examples]')"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UnsupportedModelError(
            f"requires a function {function_name!r} in the module {module_name!r}, got none; "
            f"pass another {option} module:function"
        )
    found: Callable[..., Any] = function
    return found
