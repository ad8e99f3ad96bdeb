"""Train the tokenizer.

    python -m examples.emojivar.train_tokenizer --out out/emojivar --compile

Writes `tokenizer.safetensors`, and `tokenizer.state.safetensors`, from which the same command resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .autoencoder import ResidualBlock
from .config import SMOKE, Config
from .layers import at_least_float32
from .optim import cosine_decay
from .tokenizer import Tokenizer
from .training import Checkpoint, Feed, autocast, parser, prepare_device, run_steps, settings_of, smoke

LEARNING_RATE = 1.2e-3
EDGE_WEIGHT = 0.5
QUANTISER_WEIGHT = 0.5
COMMITMENT = 0.25
SIGMA_MOMENTUM = 0.02
CODEBOOK_MOMENTUM = 0.01
LATENT_MOMENTUM = 0.02
DEAD_SHARE = 0.05  # of the mean count, below which a code is replaced
REVIVED_SHARE = 0.5
POOL = 512  # candidates per scale to replace dead codes by
REVIVE_EVERY_STEP_UNTIL, REVIVE_EVERY, REVIVE_PROGRESS = 400, 10, 0.6
STEPS = 6000


class CodebookTrainer(nn.Module):
    """Learns the codebook by exponential moving averages, and replaces codes that nothing uses."""

    counts: Tensor
    sums: Tensor

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        weight = tokenizer.codebook.weight
        self.register_buffer("counts", torch.ones(len(weight), device=weight.device))
        self.register_buffer("sums", weight.detach().clone())

    def forward(
        self, tokenizer: Tokenizer, features: Tensor, step: int, revive: bool
    ) -> tuple[Tensor, Tensor]:
        """Quantise whitened ``features`` ``[B, C, G, G]`` and update the codebook.

        Returns:
            ``f_hat`` like ``features``, and the loss of the refining convolutions and the commitment.
        """
        f_hat, loss = torch.zeros_like(features), features.new_zeros(())
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        pool = []
        for scale, side in enumerate(tokenizer.patch_nums):
            with torch.no_grad():
                z = self._standardise(tokenizer, features - f_hat, scale, step)
                idx = tokenizer.nearest(z)
                weight = 1 / side  # between counting every token and counting every scale alike
                counts.index_add_(0, idx, torch.full(idx.shape, weight, device=z.device))
                sums.index_add_(0, idx, z * weight)
                pool.append(z[torch.randint(len(z), (POOL,), device=z.device)])
            f_hat = f_hat + tokenizer.code_features(idx.view(len(features), -1), scale)
            loss = (
                loss
                + F.mse_loss(f_hat, features.detach())
                + COMMITMENT * F.mse_loss(f_hat.detach(), features)
            )
        self._update(tokenizer, counts, sums, torch.cat(pool) if revive else None, first=step == 0)
        return f_hat, loss / len(tokenizer.patch_nums)

    def _standardise(self, tokenizer: Tokenizer, rest: Tensor, scale: int, step: int) -> Tensor:
        """What a scale has to quantise, ``[B * N, C]`` in units of its sigma, which follows it."""
        z = tokenizer.downscale(rest, scale)
        size = z.square().mean().sqrt()
        sigma = tokenizer.sigma[scale]
        sigma.copy_(size if step == 0 else sigma.lerp(size, SIGMA_MOMENTUM))
        z = (z / sigma).flatten(0, 1)
        if step == 0 and scale == len(tokenizer.patch_nums) - 2:
            weight = tokenizer.codebook.weight
            start = z[torch.randint(len(z), (len(weight),), device=z.device)]
            weight.copy_(start + 0.05 * torch.randn_like(start))
        return z

    @torch.no_grad()
    def _update(
        self, tokenizer: Tokenizer, counts: Tensor, sums: Tensor, pool: Tensor | None, first: bool
    ) -> None:
        weight = tokenizer.codebook.weight
        if first:
            self.counts.fill_(counts.mean())
            self.sums.copy_(weight * self.counts[:, None])
        self.counts.lerp_(counts, CODEBOOK_MOMENTUM)
        self.sums.lerp_(sums, CODEBOOK_MOMENTUM)
        if pool is not None:
            mean = self.counts.mean()
            dead = self.counts < DEAD_SHARE * mean
            fresh = pool[torch.randint(len(pool), (len(weight),), device=pool.device)]
            self.counts.copy_(torch.where(dead, mean * REVIVED_SHARE, self.counts))
            self.sums.copy_(torch.where(dead[:, None], fresh * self.counts[:, None], self.sums))
        weight.copy_(self.sums / self.counts[:, None].clamp(min=1e-6))


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean difference of the two pictures' gradients, one and two pixels apart."""
    difference = a - b
    loss = a.new_zeros(())
    for gap in (1, 2):
        loss = loss + (difference[..., gap:] - difference[..., :-gap]).abs().mean()
        loss = loss + (difference[..., gap:, :] - difference[..., :-gap, :]).abs().mean()
    return loss


@torch.no_grad()
def update_latent_statistics(tokenizer: Tokenizer, features: Tensor, step: int) -> None:
    """Follow the mean and variance of the encoder's features ``[B, C, G, G]``."""
    momentum = max(1 / (step + 1), LATENT_MOMENTUM)
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
    optimizer: torch.optim.Optimizer
    feed: Feed
    steps: int

    def step(self, step: int) -> dict[str, float]:
        """One update; its losses."""
        torch.manual_seed(self.feed.step_seed(step))
        tokenizer, device = self.tokenizer, self.feed.device
        _, images = self.feed(step)
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine_decay(step, self.steps)
        with autocast(device):
            raw = tokenizer.encoder(images)
        raw = at_least_float32(raw)
        update_latent_statistics(tokenizer, raw.detach(), step)
        features = tokenizer.whiten(raw)
        early = step < REVIVE_EVERY_STEP_UNTIL
        revive = early or (step % REVIVE_EVERY == 0 and step < REVIVE_PROGRESS * self.steps)
        f_hat, quantiser_loss = self.codebook(tokenizer, features, step, revive)
        straight_through = features + (f_hat - features).detach()
        with autocast(device):
            restored = tokenizer.decoder(straight_through.contiguous(memory_format=torch.channels_last))
        restored = at_least_float32(restored)
        pixel_loss = (restored - images).abs().mean() + F.mse_loss(restored, images)
        loss = pixel_loss + EDGE_WEIGHT * edge_loss(restored, images) + QUANTISER_WEIGHT * quantiser_loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable(tokenizer), 1.0)
        self.optimizer.step()
        return {"loss": loss.item(), "pixels": pixel_loss.item(), "quantiser": quantiser_loss.item()}


def trainable(tokenizer: Tokenizer) -> list[nn.Parameter]:
    """Everything but the codebook, which follows moving averages."""
    return [p for name, p in tokenizer.named_parameters() if not name.startswith("codebook.")]


def make_trainer(arguments: argparse.Namespace) -> TokenizerTrainer:
    """A fresh tokenizer and its feed."""
    torch.manual_seed(arguments.seed)
    config = SMOKE if arguments.smoke else Config()
    device = prepare_device(arguments.device)
    tokenizer = Tokenizer(config.patch_nums, config.codes, config.code_width, config.tokenizer_widths)
    tokenizer.to(device, memory_format=torch.channels_last)
    tokenizer.codebook.requires_grad_(False)
    if arguments.compile:
        for module in tokenizer.modules():
            if isinstance(module, ResidualBlock):
                module.compile()
    optimizer = torch.optim.AdamW(
        trainable(tokenizer), lr=LEARNING_RATE, betas=(0.9, 0.97), weight_decay=1e-4
    )
    feed = Feed(device, tokenizer.image_size, arguments.batch, arguments.seed)
    return TokenizerTrainer(tokenizer, CodebookTrainer(tokenizer), optimizer, feed, arguments.steps)


def main(argv: Sequence[str] | None = None) -> float:
    """Command line; returns the PSNR on held-out scenes."""
    arguments = smoke(parser(__doc__.splitlines()[0], STEPS).parse_args(argv))
    trainer = make_trainer(arguments)
    checkpoint = Checkpoint(
        arguments.out / "tokenizer.state.safetensors",
        {"tokenizer": trainer.tokenizer, "codebook": trainer.codebook},
        {"adamw": trainer.optimizer},
        settings_of(arguments),
    )
    run_steps(trainer.step, checkpoint, arguments)
    stored = {name: value.cpu().contiguous() for name, value in trainer.tokenizer.state_dict().items()}
    save_file(stored, arguments.out / "tokenizer.safetensors")
    psnr = reconstruction_psnr(trainer.tokenizer.eval(), trainer.feed.held_out(arguments.batch)[1])
    print(f"held-out PSNR {psnr:.2f} dB", flush=True)
    return psnr


if __name__ == "__main__":
    main()
