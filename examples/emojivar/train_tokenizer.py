"""Train the tokenizer.

    python -m examples.emojivar.train_tokenizer --out out/emojivar --compile
    python -m examples.emojivar.train_tokenizer --init out/emojivar/tokenizer.safetensors --freeze-tokens \
        --out out/decoder --compile

The second command tunes the decoder alone, so that codes keep their meaning. Each writes
`tokenizer.safetensors`, and `tokenizer.state.safetensors`, from which the same command resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .autoencoder import ResidualBlock
from .codebook import CodebookTrainer
from .config import SMOKE, Config
from .feed import Batch, Feed
from .layers import at_least_float32
from .optim import Muon, cosine_decay, warm_up
from .tokenizer import Tokenizer
from .training import (
    Checkpoint,
    autocast,
    compile_modules,
    initial_tokenizer,
    parser,
    prepare_device,
    run_steps,
    settings_of,
    smoke,
    uncompiled,
    write_tensors,
)

MUON_RATE = 0.02
ADAM_RATE = 1.2e-3
INIT_RATE = 0.5  # of both, where training goes on from given weights
WARM_UP = 100  # steps
WEIGHT_DECAY = 0.02
MOMENTUM = 0.95
HIDDEN_CHANNELS = 16  # fewest, in and out, of the convolutions that Muon trains
EDGE_WEIGHT = 0.5
PSNR_WEIGHT = 0.05
LEAST_ERROR = 1e-6  # mean squared, below which a picture counts as perfect
QUANTISER_WEIGHT = 0.5
MOMENT_WEIGHT = 0.1
LATENT_MOMENTUM = 0.02
STEPS = 6000
EVALUATED = 64  # held-out pictures


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean difference of the two pictures' gradients, one and two pixels apart."""
    difference = a - b
    loss = a.new_zeros(())
    for gap in (1, 2):
        loss = loss + (difference[..., gap:] - difference[..., :-gap]).abs().mean()
        loss = loss + (difference[..., gap:, :] - difference[..., :-gap, :]).abs().mean()
    return loss


def picture_loss(restored: Tensor, images: Tensor) -> Tensor:
    """How far restored pictures ``[B, 3, H, W]`` are from the originals.

    The logarithm of each picture's squared error is its PSNR; alone, the absolute difference would give up
    what is thin. The gradients keep edges crisp, which the squared error would blur.
    """
    difference = restored - images
    errors = difference.square().mean((1, 2, 3)).clamp(min=LEAST_ERROR)
    return (
        difference.abs().mean()
        + errors.mean()
        + PSNR_WEIGHT * errors.log().mean()
        + EDGE_WEIGHT * edge_loss(restored, images)
    )


def moment_loss(features: Tensor) -> Tensor:
    """How far the channels of the encoder's features ``[B, C, G, G]`` are from mean 0 and variance 1.

    Whitening hides their size from every other loss but the codes', which is less the smaller they are. Left
    alone they shrink to where bfloat16 rounds them to a handful of values.
    """
    return features.mean((0, 2, 3)).square().mean() + features.var((0, 2, 3)).log().square().mean()


@torch.no_grad()
def update_latent_statistics(tokenizer: Tokenizer, features: Tensor, momentum: float) -> None:
    """Follow the mean and variance of the encoder's features ``[B, C, G, G]``."""
    tokenizer.latent_mean.lerp_(features.mean((0, 2, 3)), momentum)
    tokenizer.latent_var.lerp_(features.var((0, 2, 3)), momentum)


@torch.no_grad()
def reconstruction_psnr(tokenizer: Tokenizer, images: Tensor) -> float:
    """Mean PSNR in dB of pictures ``[B, 3, H, W]`` in [0, 1] after a round trip through their codes."""
    restored = tokenizer.decode(tokenizer.quantize(tokenizer.encode(images)).f_hat)
    errors = (restored - images).square().mean((1, 2, 3))
    return float((-10 * errors.log10()).mean())


@dataclass
class TokenizerTrainer:
    """One tokenizer with all that a step needs."""

    tokenizer: Tokenizer
    codebook: CodebookTrainer
    optimizers: Mapping[str, torch.optim.Optimizer]
    parameters: list[nn.Parameter]
    feed: Feed
    rate: float  # factor of the learning rates
    frozen: bool  # whether the decoder alone is trained
    picture_loss: Callable[[Tensor, Tensor], Tensor]

    def step(self, step: int, progress: float, batch: Batch) -> dict[str, Tensor]:
        """One update; its losses."""
        torch.manual_seed(self.feed.step_seed(step))
        device = self.feed.device
        images = (self.feed.paint(batch.scenes) * 2 - 1).contiguous(memory_format=torch.channels_last)
        if self.frozen:
            features, losses = self.frozen_features(images)
        else:
            features, losses = self.features(images, step, progress)
        with autocast(device):
            restored = self.tokenizer.decoder(features.contiguous(memory_format=torch.channels_last))
        losses["pictures"] = self.picture_loss(at_least_float32(restored), images)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        factor = self.rate * warm_up(step, WARM_UP) * cosine_decay(progress)
        for name, rate in (("muon", MUON_RATE), ("adamw", ADAM_RATE)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * factor
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)
        return {name: loss.detach() for name, loss in losses.items()}

    def features(self, images: Tensor, step: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """What the decoder reads of pictures in [-1, 1], straight through the codes, and the codes' loss."""
        with autocast(self.feed.device):
            raw = self.tokenizer.encoder(images)
        raw = at_least_float32(raw)
        momentum = max(1 / (step + 1), LATENT_MOMENTUM) if self.codebook.fresh else LATENT_MOMENTUM
        update_latent_statistics(self.tokenizer, raw.detach(), momentum)
        features = self.tokenizer.whiten(raw)
        f_hat, loss = self.codebook(self.tokenizer, features, step, progress)
        losses = {"quantiser": QUANTISER_WEIGHT * loss, "moments": MOMENT_WEIGHT * moment_loss(raw)}
        return features + (f_hat - features).detach(), losses

    @torch.no_grad()
    def frozen_features(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the decoder reads of pictures in [-1, 1] where their codes do not change, and no loss."""
        with autocast(self.feed.device):
            raw = self.tokenizer.encoder(images)
        return self.tokenizer.quantize(self.tokenizer.whiten(at_least_float32(raw))).f_hat, {}


def trainable(tokenizer: Tokenizer, frozen: bool) -> list[nn.Parameter]:
    """The decoder, or everything but the codebook, which follows moving averages."""
    kept = "decoder." if frozen else ("encoder.", "decoder.", "refine.")
    return [parameter for name, parameter in tokenizer.named_parameters() if name.startswith(kept)]


def make_trainer(arguments: argparse.Namespace) -> TokenizerTrainer:
    """A fresh tokenizer, or the one of ``--init``, and its feed."""
    torch.manual_seed(arguments.seed)
    config = SMOKE if arguments.smoke else Config()
    device = prepare_device(arguments.device)
    tokenizer = Tokenizer(config.patch_nums, config.codes, config.code_width, config.tokenizer_widths)
    if arguments.init:
        tokenizer.load_state_dict(initial_tokenizer(arguments.init, config))
    tokenizer.to(device, memory_format=torch.channels_last).requires_grad_(False)
    parameters = trainable(tokenizer, arguments.freeze_tokens)
    for parameter in parameters:
        parameter.requires_grad_(True)
    measure = picture_loss
    if arguments.compile:
        measure = torch.compile(picture_loss, dynamic=False)
        compile_modules(module for module in tokenizer.modules() if isinstance(module, ResidualBlock))
    hidden = [p for p in parameters if p.dim() == 4 and min(p.shape[:2]) >= HIDDEN_CHANNELS]
    taken = {id(parameter) for parameter in hidden}
    others = [parameter for parameter in parameters if id(parameter) not in taken]
    optimizers = {
        "muon": Muon(hidden, lr=MUON_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        "adamw": torch.optim.AdamW(
            others, lr=ADAM_RATE, betas=(0.9, 0.97), weight_decay=1e-4, fused=device.type == "cuda"
        ),
    }
    feed = Feed(device, tokenizer.image_size, lambda _: arguments.batch, arguments.seed, arguments.workers)
    codebook = CodebookTrainer(tokenizer, fresh=not arguments.init)
    rate = INIT_RATE if arguments.init else 1.0
    return TokenizerTrainer(
        tokenizer, codebook, optimizers, parameters, feed, rate, arguments.freeze_tokens, measure
    )


def main(argv: Sequence[str] | None = None) -> float:
    """Command line; returns the PSNR on held-out scenes."""
    options = parser(__doc__.splitlines()[0], STEPS)
    options.add_argument("--freeze-tokens", action="store_true", help="train the decoder alone; needs --init")
    arguments = smoke(options.parse_args(argv))
    if arguments.freeze_tokens and not arguments.init:
        options.error("--freeze-tokens requires --init: the decoder of random codes has nothing to learn")
    trainer = make_trainer(arguments)
    checkpoint = Checkpoint(
        arguments.out / "tokenizer.state.safetensors",
        {"tokenizer": trainer.tokenizer, "codebook": trainer.codebook},
        trainer.optimizers,
        settings_of(arguments, "freeze_tokens"),
    )

    def publish() -> None:
        stored = {name: value.cpu().contiguous() for name, value in trainer.tokenizer.state_dict().items()}
        write_tensors(stored, arguments.out / "tokenizer.safetensors")

    run_steps(trainer.step, trainer.feed, checkpoint, publish, arguments)
    with uncompiled(arguments):
        images = trainer.feed.held_out(min(arguments.batch, EVALUATED))[1]
        psnr = reconstruction_psnr(trainer.tokenizer.eval(), images)
    print(f"held-out PSNR {psnr:.2f} dB", flush=True)
    return psnr


if __name__ == "__main__":
    main()
