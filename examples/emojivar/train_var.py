"""Train the transformer on a trained tokenizer.

    python -m examples.emojivar.train_var --tokenizer out/emojivar/tokenizer.safetensors --compile

Most steps are early ones: they train the coarse scales alone, on more pictures. These decide the composition
and hold an eighth of the tokens. Attention never looks ahead, so leaving out the rest changes nothing there.

Writes the whole model as `weights.load` reads it, and `var.state.safetensors`, from which the same command
resumes. What it writes is a moving average of the weights.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import SMOKE, Config
from .feed import Batch, Feed
from .model import EmojiVAR
from .optim import MovingAverage, Muon, linear_decay, split_parameters, warm_up
from .tokenizer import Tokens
from .training import (
    Checkpoint,
    autocast,
    compile_modules,
    initial_model,
    initial_tokenizer,
    parser,
    prepare_device,
    run_steps,
    settings_of,
    smoke,
    uncompiled,
)
from .weights import ASSETS, INDEX_NAME, save

MUON_RATE = 0.02
ADAM_RATE = 2e-3
HOLD, INIT_HOLD = 0.5, 0.3  # share of the run before the rates fall; from given weights they may fall sooner
WARM_UP = 60  # steps
WEIGHT_DECAY = 0.02
MOMENTUM = 0.95
AVERAGE_DECAY = 0.998
MOST_PERTURBED = 0.2  # of a picture's input codes
PROMPT_DROPPED = 0.1  # how often the prompt is left out, for classifier-free guidance
TOKEN_WEIGHT_POWER = -0.5
EARLY_SIDE = 3 / 8  # of the finest scale's side: up to it, scales are early
CYCLE = 4  # steps, of which the last is full and the others are early
EARLY_BATCH = 4  # times the batch of a full step
ENCODED = 64  # pictures that go through the encoder at a time
STEPS = 20_000
EVALUATED = 64  # held-out pictures


def is_full(step: int) -> bool:
    """Whether a step trains all scales."""
    return step % CYCLE == CYCLE - 1


def token_weights(patch_nums: Sequence[int], device: torch.device) -> Tensor:
    """Loss weight ``[L]`` of each token, ``(tokens of its scale) ** -0.5``, with a mean of one.

    Unweighted, the finest scale would be half of the loss and the composition, in the first few, nothing.
    """
    counts = torch.tensor([side * side for side in patch_nums], device=device)
    weights = counts.pow(torch.tensor(TOKEN_WEIGHT_POWER)).repeat_interleave(counts)
    return weights / weights.mean()


def weighted_loss(logits: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of codes ``[B, L]``, weighted by ``weights`` ``[L]``, summed over ``L``; a scalar."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), reduction="none")
    return (losses.view_as(codes) * weights).sum(1).mean()


@dataclass
class VARTrainer:
    """One model with all that a step needs."""

    model: EmojiVAR
    average: MovingAverage
    optimizers: Mapping[str, torch.optim.Optimizer]
    feed: Feed
    hold: float  # share of the run before the rates fall
    weights: Tensor  # [L], loss weights with a sum of one
    measure: Callable[[Tensor, Tensor, Tensor], Tensor]

    @property
    def early_scales(self) -> int:
        """How many scales an early step trains."""
        sides = self.model.patch_nums
        return sum(side <= EARLY_SIDE * sides[-1] for side in sides)

    def tokens(
        self, images: Tensor, perturb: Tensor | None, generator: torch.Generator | None, scales: int | None
    ) -> Tokens:
        """Targets and inputs of pictures; the encoder runs in bfloat16 on a GPU, the quantiser never does."""
        tokenizer = self.model.tokenizer
        with torch.no_grad():
            with autocast(self.feed.device):
                pictures = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
                raw = torch.cat([tokenizer.encoder(part) for part in pictures.split(ENCODED)])
            return tokenizer.quantize(
                tokenizer.whiten(raw.float()), perturb, generator=generator, scales=scales
            )

    def loss(self, model: EmojiVAR, ids: Tensor, tokens: Tokens) -> Tensor:
        """Weighted cross-entropy of the first scales, a scalar: their part of the loss of all."""
        with autocast(self.feed.device):
            logits = model(ids, tokens.inputs)
        return self.measure(logits, tokens.codes, self.weights[: tokens.codes.shape[1]])

    def step(self, step: int, progress: float, batch: Batch) -> dict[str, Tensor]:
        """One update; its loss."""
        device = self.feed.device
        generator = torch.Generator(device).manual_seed(self.feed.step_seed(step))
        images = self.feed.paint(batch.scenes)
        perturb = torch.rand(len(images), device=device, generator=generator) * MOST_PERTURBED
        dropped = torch.rand(len(images), device=device, generator=generator) < PROMPT_DROPPED
        ids = batch.ids.to(device, non_blocking=True).masked_fill(dropped[:, None], 0)
        scales = None if is_full(step) else self.early_scales
        loss = self.loss(self.model, ids, self.tokens(images, perturb, generator, scales))
        loss.backward()
        factor = warm_up(step, WARM_UP) * linear_decay(progress, self.hold)
        for name, rate in (("muon", MUON_RATE), ("adamw", ADAM_RATE)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * factor
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)
        self.average.update(self.model, step)
        return {"loss" if is_full(step) else "early": loss.detach()}

    @torch.no_grad()
    def evaluate(self, count: int) -> float:
        """The averaged weights' loss on held-out scenes, from unperturbed codes."""
        ids, images = self.feed.held_out(count)
        return self.loss(self.average.model, ids, self.tokens(images, None, None, None)).item()


def transformer_of(model: EmojiVAR) -> nn.ModuleDict:
    """All of a model but its tokenizer."""
    return nn.ModuleDict({name: child for name, child in model.named_children() if name != "tokenizer"})


def make_model(arguments: argparse.Namespace) -> EmojiVAR:
    """The transformer of ``--init`` or a fresh one, on the tokenizer of ``--tokenizer``.

    Without ``--tokenizer`` it is the one that comes with ``--init``, or the repository's. Where the codes
    are not those that the transformer knows, the layers that read and write codes start afresh.
    """
    torch.manual_seed(arguments.seed)
    config = SMOKE if arguments.smoke else Config()
    model = EmojiVAR(config)
    if arguments.init:
        model.load_state_dict(initial_model(arguments.init, config).state_dict())
    if arguments.tokenizer:
        known = model.tokenizer.codebook.weight.clone()
        model.tokenizer.load_state_dict(initial_tokenizer(arguments.tokenizer, config))
        if arguments.init and not torch.equal(known, model.tokenizer.codebook.weight):
            fresh = EmojiVAR(config)
            model.code_embed.load_state_dict(fresh.code_embed.state_dict())
            model.head.linear.load_state_dict(fresh.head.linear.state_dict())
    elif not arguments.init and not arguments.smoke:
        model.tokenizer.load_state_dict(initial_tokenizer(ASSETS, config))
    return model


def make_trainer(arguments: argparse.Namespace) -> VARTrainer:
    """A model with its optimizers and feed."""
    device = prepare_device(arguments.device)
    model = make_model(arguments).to(device)
    model.tokenizer.requires_grad_(False).eval()
    model.tokenizer.encoder.to(memory_format=torch.channels_last)
    average = MovingAverage(model, AVERAGE_DECAY)
    measure = weighted_loss
    if arguments.compile:
        measure = torch.compile(weighted_loss, dynamic=False)
        compile_modules((*model.blocks, model.head, model.tokenizer.encoder))
    plain, stacked, others = split_parameters(transformer_of(model))
    groups = [{"params": plain}, {"params": stacked, "stacked": True}]
    optimizers = {
        "muon": Muon(groups, lr=MUON_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        "adamw": torch.optim.AdamW(
            others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda"
        ),
    }

    def size_of(step: int) -> int:
        return arguments.batch * (1 if is_full(step) else EARLY_BATCH)

    feed = Feed(device, model.tokenizer.image_size, size_of, arguments.seed, arguments.workers)
    weights = token_weights(model.patch_nums, device)
    hold = INIT_HOLD if arguments.init else HOLD
    return VARTrainer(model, average, optimizers, feed, hold, weights / len(weights), measure)


def publish(model: EmojiVAR, folder: Path) -> None:
    """Save a model over another, so that a run stopped at any moment leaves one that loads."""
    partial = folder / "partial"
    save(model, partial)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == INDEX_NAME):
        os.replace(path, folder / path.name)
    partial.rmdir()


def main(argv: Sequence[str] | None = None) -> float:
    """Command line; returns the loss on held-out scenes."""
    options = parser(__doc__.splitlines()[0], STEPS)
    options.add_argument("--tokenizer", type=Path, help="tokenizer.safetensors, or a saved model's folder")
    arguments = smoke(options.parse_args(argv))
    trainer = make_trainer(arguments)
    checkpoint = Checkpoint(
        arguments.out / "var.state.safetensors",
        {"model": trainer.model, "average": trainer.average},
        trainer.optimizers,
        settings_of(arguments),
    )
    run_steps(
        trainer.step,
        trainer.feed,
        checkpoint,
        lambda: publish(trainer.average.model, arguments.out),
        arguments,
    )
    with uncompiled(arguments):
        held_out = trainer.evaluate(min(arguments.batch, EVALUATED))
    print(f"held-out loss {held_out:.4f}", flush=True)
    return held_out


if __name__ == "__main__":
    main()
