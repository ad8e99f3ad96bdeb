"""What both training programs share: checkpoints, the loop over steps and the command line."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from .config import Config
from .feed import Batch, Feed
from .model import EmojiVAR
from .weights import ASSETS, load

SECONDS = 60  # a minute
MOST_COMPILATIONS = 64  # of a process, far above what it needs


@dataclass
class Checkpoint:
    """The state of a run: modules, optimizers, loose tensors, and the settings that must not change."""

    path: Path
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    settings: Mapping[str, Any]

    def save(self, step: int, seconds: float = 0.0) -> None:
        """Write everything to one safetensors file, whole or not at all.

        Args:
            step: how many steps were taken.
            seconds: that they took.
        """
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in state.items()}
        stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        settings = json.dumps(self.settings, sort_keys=True)
        save_file(stored, partial, {"step": str(step), "seconds": str(seconds), "settings": settings})
        os.replace(partial, self.path)

    def resume(self) -> tuple[int, float]:
        """Restore what :meth:`save` wrote and return its step and seconds; zeros where there is nothing yet.

        Raises:
            ValueError: the file belongs to a run with other settings.
        """
        if not self.path.exists():
            return 0, 0.0
        with safe_open(self.path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if header.get("settings") != json.dumps(self.settings, sort_keys=True):
            raise ValueError(
                f"{self.path} requires the settings it was started with, {header.get('settings')}; "
                "repeat those or choose another --out"
            )
        for name, module in self.modules.items():
            module.load_state_dict(_below(tensors, f"module/{name}/"))
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"optimizer/{name}/").items():
                index, field = key.split("/")
                state.setdefault(int(index), {})[field] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        return int(header["step"]), float(header["seconds"])


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(dict(tensors), partial)
    os.replace(partial, path)


def initial_model(folder: Path, config: Config) -> EmojiVAR:
    """The model saved in a folder, in float32; ValueError where its sizes are not those of this run."""
    model = load(folder=folder)
    if model.config != config:
        raise ValueError(f"--init {folder} requires a model of {config}, got {model.config}; choose another")
    return model


def initial_tokenizer(path: Path, config: Config) -> dict[str, Tensor]:
    """The tokenizer's weights from a `tokenizer.safetensors`, or from the folder of a saved model."""
    if path.is_dir():
        return initial_model(path, config).tokenizer.state_dict()
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; write it with examples.emojivar.train_tokenizer")
    return load_file(path)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def parser(description: str, steps: int) -> argparse.ArgumentParser:
    """The arguments that both programs take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("out/emojivar"), help="folder of the results")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=steps)
    length.add_argument(
        "--minutes",
        type=float,
        help="train this long by the clock instead, compilation included; rates decay by elapsed time",
    )
    parser.add_argument(
        "--init",
        type=Path,
        nargs="?",
        const=ASSETS,
        help="start from the weights in this folder, without one from the repository's, instead of at random",
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that lay out scenes ahead of time")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--log-every", type=int, default=50, help="steps between printed lines")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the repeated parts with Inductor")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few steps, to try the code")
    return parser


def smoke(arguments: argparse.Namespace) -> argparse.Namespace:
    """Shrink a run to what a CPU does within a minute."""
    if arguments.smoke:
        arguments.steps, arguments.batch = min(arguments.steps, 8), min(arguments.batch, 8)
        arguments.log_every = 1
    return arguments


def settings_of(arguments: argparse.Namespace, *more: str) -> dict[str, Any]:
    """What a resumed run must repeat: the common settings and ``more``; by the clock, not the duration."""
    length = "by the clock" if arguments.minutes else arguments.steps
    init = str(arguments.init) if arguments.init else None
    named = {name: getattr(arguments, name) for name in ("batch", "seed", "smoke", *more)}
    return {"length": length, "init": init, **named}


def run_steps(
    step: Callable[[int, float, Batch], Mapping[str, Tensor]],
    feed: Feed,
    checkpoint: Checkpoint,
    publish: Callable[[], None],
    arguments: argparse.Namespace,
) -> None:
    """Take the steps that the checkpoint has not yet seen, printing losses and saving on the way.

    Args:
        step: takes the number of the step, the share of the run that lies behind it, and its batch;
            returns losses, of which the newest of each name are printed.
        feed: of the batches.
        checkpoint: to resume from, and to save to.
        publish: writes the result, at each checkpoint and at the end.
        arguments: of :func:`parser`.
    """
    first, spent = checkpoint.resume()
    begin = time.monotonic() - spent
    latest: dict[str, Tensor] = {}
    number, seconds = first, spent
    for number, batch in zip(itertools.count(first), feed.batches(first), strict=False):
        seconds = time.monotonic() - begin
        progress = seconds / (SECONDS * arguments.minutes) if arguments.minutes else number / arguments.steps
        if progress >= 1:
            break
        if number > first and number % arguments.save_every == 0:
            checkpoint.save(number, seconds)
            publish()
        latest |= step(number, progress, batch)
        if number % arguments.log_every == 0:
            print(f"step {number} seconds {seconds:.0f}", *_readable(latest), flush=True)
    checkpoint.save(number, seconds)
    publish()


def _readable(losses: Mapping[str, Tensor]) -> list[str]:
    """Losses as text; FloatingPointError where one is not finite."""
    values = {name: float(value) for name, value in losses.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss {name!r} requires a finite value, got {value}; resume from the last checkpoint, "
                "or start again with a lower learning rate"
            )
    return [f"{name} {value:.4f}" for name, value in values.items()]


def prepare_device(name: str) -> torch.device:
    """The device, with TF32 and autotuned convolutions allowed."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device(name)


def compile_modules(modules: Iterable[nn.Module]) -> None:
    """Compile each call of the modules for its exact shapes; equal modules share their code."""
    # all modules count against one limit, as all go through the same `__call__`
    torch._dynamo.config.recompile_limit = MOST_COMPILATIONS
    for module in modules:
        module.compile(dynamic=False)


def uncompiled(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """Runs compiled modules as they are written: for a batch or two, compilation does not pay."""
    return torch.compiler.set_stance("force_eager") if arguments.compile else nullcontext()


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for the heavy parts on a GPU; nothing on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
