"""What both training programs share: data by step, checkpoints and the command line."""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from .atlas import read_atlas
from .prompt_sets import held_out_prompts, random_prompt
from .prompts import Prompt
from .scenes import make_scenes, render

SEED_STRIDE = 1_000_003  # keeps the steps of neighbouring seeds apart


class Feed:
    """Endless training pictures. A batch depends on the seed and the step alone, so that a run can resume."""

    def __init__(self, device: torch.device, image_size: int, batch: int, seed: int) -> None:
        self.atlas = read_atlas()
        self.sprites = self.atlas.sprites.to(device).float() / 255
        self.device, self.image_size, self.batch, self.seed = device, image_size, batch, seed

    def step_seed(self, step: int) -> int:
        """Seed of everything random in a step."""
        return self.seed * SEED_STRIDE + step

    def __call__(self, step: int) -> tuple[list[Prompt], Tensor]:
        """Prompts and their pictures ``[batch, 3, image_size, image_size]`` in [0, 1]."""
        rng = random.Random(self.step_seed(step))
        prompts = [random_prompt(rng) for _ in range(self.batch)]
        return prompts, self.paint(prompts, self.step_seed(step))

    def held_out(self, count: int, seed: int = 0) -> tuple[list[Prompt], Tensor]:
        """Prompts that training never shows, and their pictures."""
        prompts = held_out_prompts(count, seed)
        return prompts, self.paint(prompts, seed)

    def paint(self, prompts: list[Prompt], seed: int) -> Tensor:
        """Pictures ``[B, 3, image_size, image_size]`` of prompts."""
        return render(make_scenes(prompts, self.atlas, seed).to(self.device), self.sprites, self.image_size)


@dataclass
class Checkpoint:
    """The state of a run: modules, optimizers, loose tensors, and the settings that must not change."""

    path: Path
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    settings: Mapping[str, Any]

    def save(self, step: int) -> None:
        """Write everything to one safetensors file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in state.items()}
        stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(stored, partial, {"step": str(step), "settings": json.dumps(self.settings, sort_keys=True)})
        os.replace(partial, self.path)

    def resume(self) -> int:
        """Restore what :meth:`save` wrote and return its step; 0 where there is nothing yet.

        Raises:
            ValueError: the file belongs to a run with other settings.
        """
        if not self.path.exists():
            return 0
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
        return int(header["step"])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def parser(description: str, steps: int) -> argparse.ArgumentParser:
    """The arguments that both programs take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("out/emojivar"), help="folder of the results")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--log-every", type=int, default=50, help="steps between printed lines")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the repeated blocks with Inductor")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few steps, to try the code")
    return parser


def smoke(arguments: argparse.Namespace) -> argparse.Namespace:
    """Shrink a run to what a CPU does within a minute."""
    if arguments.smoke:
        arguments.steps, arguments.batch = min(arguments.steps, 8), min(arguments.batch, 8)
        arguments.log_every = 1
    return arguments


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a resumed run must repeat."""
    return {name: getattr(arguments, name) for name in ("steps", "batch", "seed", "smoke")}


def run_steps(
    step: Callable[[int], Mapping[str, float]], checkpoint: Checkpoint, arguments: argparse.Namespace
) -> None:
    """Take the steps that the checkpoint has not yet seen, printing losses and saving on the way."""
    for number in range(checkpoint.resume(), arguments.steps):
        losses = step(number)
        if number % arguments.log_every == 0:
            print(f"step {number}", *(f"{name} {value:.4f}" for name, value in losses.items()), flush=True)
        if (number + 1) % arguments.save_every == 0 or number + 1 == arguments.steps:
            checkpoint.save(number + 1)


def prepare_device(name: str) -> torch.device:
    """The device, with TF32 and autotuned convolutions allowed."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device(name)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for the heavy parts on a GPU; nothing on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
