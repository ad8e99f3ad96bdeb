"""Train the transformer on a trained tokenizer.

    python -m examples.emojivar.train_var --tokenizer out/emojivar/tokenizer.safetensors --compile

Writes the whole model as `weights.load` reads it, and `var.state.safetensors`, from which the same command
resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .config import SMOKE, Config
from .model import EmojiVAR
from .optim import Muon, linear_decay, split_parameters
from .prompts import Prompt, encode
from .tokenizer import Tokens
from .training import Checkpoint, Feed, autocast, parser, prepare_device, run_steps, settings_of, smoke
from .weights import load, save

MUON_RATE = 0.02
ADAM_RATE = 2e-3
WEIGHT_DECAY = 0.02
MOMENTUM = 0.95
MOST_PERTURBED = 0.2  # of a picture's input codes
PROMPT_DROPPED = 0.1  # how often the prompt is left out, for classifier-free guidance
TOKEN_WEIGHT_POWER = -0.5
STEPS = 10_000
EVALUATED = 64  # held-out pictures


def token_weights(patch_nums: Sequence[int], device: torch.device) -> Tensor:
    """Loss weight ``[L]`` of each token, ``(tokens of its scale) ** -0.5``, with a mean of one.

    Unweighted, the finest scale would be half of the loss and the composition, in the first few, nothing.
    """
    counts = torch.tensor([side * side for side in patch_nums], device=device)
    weights = counts.pow(torch.tensor(TOKEN_WEIGHT_POWER)).repeat_interleave(counts)
    return weights / weights.mean()


@dataclass
class VARTrainer:
    """One model with all that a step needs."""

    model: EmojiVAR
    optimizers: Mapping[str, torch.optim.Optimizer]
    feed: Feed
    steps: int
    weights: Tensor  # [L]

    def tokens(self, images: Tensor, perturb: Tensor | None, generator: torch.Generator | None) -> Tokens:
        """Targets and inputs of pictures; the encoder runs in bfloat16 on a GPU, the quantiser never does."""
        tokenizer = self.model.tokenizer
        with torch.no_grad():
            with autocast(self.feed.device):
                raw = tokenizer.encoder(images * 2 - 1)
            return tokenizer.quantize(tokenizer.whiten(raw.float()), perturb, generator=generator)

    def loss(self, prompts: list[Prompt], tokens: Tokens, dropped: Tensor | None = None) -> Tensor:
        """Weighted cross-entropy, a scalar."""
        ids = encode(prompts, self.model.vocabulary, self.model.config.prompt_length).to(self.feed.device)
        if dropped is not None:
            ids = ids.masked_fill(dropped[:, None], 0)
        with autocast(self.feed.device):
            logits = self.model(ids, tokens.inputs)
        losses = F.cross_entropy(logits.float().transpose(1, 2), tokens.codes, reduction="none")
        return (losses * self.weights).mean()

    def step(self, step: int) -> dict[str, float]:
        """One update; its loss."""
        device = self.feed.device
        generator = torch.Generator(device).manual_seed(self.feed.step_seed(step))
        prompts, images = self.feed(step)
        perturb = torch.rand(len(prompts), device=device, generator=generator) * MOST_PERTURBED
        dropped = torch.rand(len(prompts), device=device, generator=generator) < PROMPT_DROPPED
        loss = self.loss(prompts, self.tokens(images, perturb, generator), dropped)
        loss.backward()
        for name, rate in (("muon", MUON_RATE), ("adamw", ADAM_RATE)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * linear_decay(step, self.steps)
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)
        return {"loss": loss.item()}

    @torch.no_grad()
    def evaluate(self, count: int) -> float:
        """The loss on held-out scenes, from unperturbed codes."""
        prompts, images = self.feed.held_out(count)
        return self.loss(prompts, self.tokens(images, None, None)).item()


def transformer_of(model: EmojiVAR) -> nn.ModuleDict:
    """All of a model but its tokenizer."""
    return nn.ModuleDict({name: child for name, child in model.named_children() if name != "tokenizer"})


def make_model(arguments: argparse.Namespace) -> EmojiVAR:
    """A fresh transformer on the tokenizer of ``--tokenizer``, or on the one in the repository."""
    torch.manual_seed(arguments.seed)
    model = EmojiVAR(SMOKE if arguments.smoke else Config())
    if arguments.tokenizer is not None:
        if not arguments.tokenizer.exists():
            raise FileNotFoundError(
                f"{arguments.tokenizer} is missing; write it with examples.emojivar.train_tokenizer"
            )
        model.tokenizer.load_state_dict(load_file(arguments.tokenizer))
    elif not arguments.smoke:
        model.tokenizer.load_state_dict(load().tokenizer.state_dict())
    return model


def make_trainer(arguments: argparse.Namespace) -> VARTrainer:
    """A fresh model with its optimizers and feed."""
    device = prepare_device(arguments.device)
    model = make_model(arguments).to(device)
    model.tokenizer.requires_grad_(False).eval()
    if arguments.compile:
        for block in model.blocks:
            block.compile()
    plain, stacked, others = split_parameters(transformer_of(model))
    groups = [{"params": plain}, {"params": stacked, "stacked": True}]
    optimizers = {
        "muon": Muon(groups, lr=MUON_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        "adamw": torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    }
    feed = Feed(device, model.tokenizer.image_size, arguments.batch, arguments.seed)
    return VARTrainer(model, optimizers, feed, arguments.steps, token_weights(model.patch_nums, device))


def main(argv: Sequence[str] | None = None) -> float:
    """Command line; returns the loss on held-out scenes."""
    options = parser(__doc__.splitlines()[0], STEPS)
    options.add_argument("--tokenizer", type=Path, help="tokenizer.safetensors; by default the repository's")
    arguments = smoke(options.parse_args(argv))
    trainer = make_trainer(arguments)
    checkpoint = Checkpoint(
        arguments.out / "var.state.safetensors",
        {"model": trainer.model},
        trainer.optimizers,
        settings_of(arguments),
    )
    run_steps(trainer.step, checkpoint, arguments)
    save(trainer.model, arguments.out)
    held_out = trainer.evaluate(min(arguments.batch, EVALUATED))
    print(f"held-out loss {held_out:.4f}", flush=True)
    return held_out


if __name__ == "__main__":
    main()
