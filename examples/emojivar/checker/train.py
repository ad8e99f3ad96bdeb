"""Train the checker on true scenes, and measure it on held-out ones.

    python -m examples.emojivar.checker.train --out out/checker --minutes 3 --workers 5

writes `checker.safetensors` with its index and accuracy table (JSON and Markdown), to be copied to
`examples/emojivar/assets`, and `checker.state.safetensors`, from which the same command resumes.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from examples.emojivar.atlas import read_atlas
from examples.emojivar.feed import Batch, Feed
from examples.emojivar.optim import Muon, cosine_decay, warm_up
from examples.emojivar.scenes import SLOTS, Scenes
from examples.emojivar.training import (
    Checkpoint,
    autocast,
    parser,
    prepare_device,
    run_steps,
    settings_of,
    smoke,
)

from .accuracy import SCENES
from .accuracy_table import make_report, write_report
from .checker import SIDE
from .degrade import degrade
from .files import load_checker, save_checker
from .losses import losses_of
from .net import SMOKE, CheckerNet, Maps, NetConfig
from .targets import Labels, Targets, label, make_targets

MUON_RATE = 0.02
ADAM_RATE = 2e-3
WARM_UP = 100  # steps
WEIGHT_DECAY = 0.02
MOMENTUM = 0.95
HIDDEN_CHANNELS = 16  # fewest, in and out, of the convolutions that Muon trains
BATCH = 256
STEPS = 3000
MIXED = 0.5  # share of scenes whose objects are drawn anew, each for itself
SMOKE_SCENES = 12


def mix_objects(scenes: Scenes, labels: Labels, share: float = MIXED) -> Scenes:
    """Draw the kind and hue of every object of some scenes anew, independently of the others.

    Prompts show two or more of a kind, or all things in hues, or none. A checker that learned this would see
    it in pictures that are wrong, too.
    """
    drawn = torch.multinomial(labels.weights, scenes.sprites.numel(), replacement=True)
    chosen = torch.rand(len(scenes.sprites), 1, device=drawn.device) < share
    return replace(scenes, sprites=torch.where(chosen, drawn.view(-1, SLOTS), scenes.sprites))


@dataclass
class CheckerTrainer:
    """One network with all that a step needs."""

    net: CheckerNet
    optimizers: Mapping[str, torch.optim.Optimizer]
    feed: Feed
    labels: Labels
    losses: Callable[[Maps, Targets], dict[str, Tensor]]

    def step(self, step: int, progress: float, batch: Batch) -> dict[str, Tensor]:
        """One update; its losses."""
        torch.manual_seed(self.feed.step_seed(step))
        scenes = mix_objects(batch.scenes.to(self.feed.device), self.labels)
        images = degrade(self.feed.paint(scenes)).contiguous(memory_format=torch.channels_last)
        targets = make_targets(scenes, self.labels, self.feed.image_size)
        with autocast(self.feed.device):
            maps = self.net(images)
        losses = self.losses(maps, targets)
        sum(losses.values()).backward()
        factor = warm_up(step, WARM_UP) * cosine_decay(progress)
        for name, rate in (("muon", MUON_RATE), ("adamw", ADAM_RATE)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * factor
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)
        return {name: loss.detach() for name, loss in losses.items()}


def make_optimizers(net: CheckerNet) -> dict[str, torch.optim.Optimizer]:
    """Muon for the convolutions within the network, AdamW for its first, its last and all vectors."""
    heads = {id(parameter) for head in net.heads for parameter in head.parameters()}
    hidden, others = [], []
    for parameter in net.parameters():
        wide = parameter.dim() == 4 and min(parameter.shape[:2]) >= HIDDEN_CHANNELS
        (hidden if wide and id(parameter) not in heads else others).append(parameter)
    fused = next(net.parameters()).is_cuda
    return {
        "muon": Muon(hidden, lr=MUON_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        "adamw": torch.optim.AdamW(others, lr=ADAM_RATE, weight_decay=WEIGHT_DECAY, fused=fused),
    }


def make_trainer(arguments: Namespace) -> CheckerTrainer:
    """A fresh network, or the one of ``--init``, and its feed."""
    torch.manual_seed(arguments.seed)
    device = prepare_device(arguments.device)
    if arguments.init:
        net = load_checker(folder=arguments.init).net.requires_grad_(True)
    else:
        net = CheckerNet(SMOKE if arguments.smoke else NetConfig())
    net.to(device, memory_format=torch.channels_last).train()
    losses = losses_of
    if arguments.compile:
        net.compile(dynamic=False)
        losses = torch.compile(losses_of, dynamic=False)
    feed = Feed(device, SIDE, lambda _: arguments.batch, arguments.seed, arguments.workers)
    return CheckerTrainer(net, make_optimizers(net), feed, label(read_atlas()).to(device), losses)


def measure_saved(folder: Path, device: torch.device, scenes: int) -> float:
    """Measure the weights in a folder as they are loaded from it, and write the table beside them.

    Returns:
        The share of scenes of which everything was right.
    """
    report = make_report(load_checker(device, folder), read_atlas(), scenes)
    write_report(report, folder)
    everything = report["true_scenes"]["all"]
    print("held-out", *(f"{name} {value:.4f}" for name, value in everything.items()), flush=True)
    return everything["whole scene"]


def main(argv: Sequence[str] | None = None) -> float:
    """Command line; returns the share of held-out scenes of which everything was right."""
    options = parser(__doc__.splitlines()[0], STEPS)
    options.set_defaults(batch=BATCH, out=Path("out/checker"))
    options.add_argument("--scenes", type=int, default=SCENES, help="held-out scenes of the accuracy table")
    arguments = smoke(options.parse_args(argv))
    if arguments.smoke:
        arguments.scenes = min(arguments.scenes, SMOKE_SCENES)
    trainer = make_trainer(arguments)
    checkpoint = Checkpoint(
        arguments.out / "checker.state.safetensors",
        {"net": trainer.net},
        trainer.optimizers,
        settings_of(arguments),
    )
    run_steps(
        trainer.step, trainer.feed, checkpoint, lambda: save_checker(trainer.net, arguments.out), arguments
    )
    return measure_saved(arguments.out, trainer.feed.device, arguments.scenes)


if __name__ == "__main__":
    main()
