"""The tokenizer: codes that read back, and pictures that survive them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from examples.emojivar import EmojiVAR
from examples.emojivar.atlas import Atlas
from examples.emojivar.prompt_sets import held_out_prompts
from examples.emojivar.scenes import make_scenes, render
from examples.emojivar.tokenizer import down_matrix, up_matrix
from examples.emojivar.train_tokenizer import reconstruction_psnr

LEAST_PSNR = 31.0  # dB, what the test bed needs for thin masts and eyes; 37.1 was measured on 360 scenes


def test_released_tokenizer_keeps_held_out_pictures(released: EmojiVAR, atlas: Atlas) -> None:
    images = render(make_scenes(held_out_prompts(12), atlas, 0), atlas.sprites.float() / 255)
    assert reconstruction_psnr(released.tokenizer, images) > LEAST_PSNR


def test_the_code_features_add_up_to_f_hat(small_model: Callable[..., EmojiVAR]) -> None:
    model = small_model()
    tokenizer = model.tokenizer
    features = torch.randn(2, tokenizer.code_width, 12, 12, dtype=torch.float64)
    tokens = tokenizer.quantize(features)
    ends = model.config.ends
    f_hat = tokenizer.empty_features(2)
    for scale, (begin, end) in enumerate(zip((0, *ends[:-1]), ends, strict=True)):
        if scale:
            assert torch.equal(tokens.inputs[:, begin - 1 : end - 1], tokenizer.downscale(f_hat, scale))
        f_hat = f_hat + tokenizer.code_features(tokens.codes[:, begin:end], scale)
    assert torch.equal(f_hat, tokens.f_hat)


def test_nearest_code_is_the_nearest(small_model: Callable[..., EmojiVAR]) -> None:
    tokenizer = small_model().tokenizer
    z = torch.randn(50, tokenizer.code_width, dtype=torch.float64)
    assert torch.equal(tokenizer.nearest(z), torch.cdist(z, tokenizer.codebook.weight).argmin(-1))
    assert torch.equal(tokenizer.nearest(tokenizer.codebook.weight), torch.arange(48))


def test_perturbation_moves_inputs_not_targets_of_the_first_scale(
    small_model: Callable[..., EmojiVAR],
) -> None:
    tokenizer = small_model().tokenizer
    features = torch.randn(2, tokenizer.code_width, 12, 12, dtype=torch.float64)
    plain = tokenizer.quantize(features)
    perturb = torch.tensor([0.0, 1.0])
    moved = tokenizer.quantize(features, perturb, 5.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved.inputs[0], plain.inputs[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(moved.codes[:, 0], plain.codes[:, 0])
    assert not torch.equal(moved.inputs[1], plain.inputs[1])


@pytest.mark.parametrize("side", [1, 2, 3, 6, 24, 32])
def test_resizing_keeps_constants(side: int) -> None:
    ones = torch.ones(32)
    torch.testing.assert_close(down_matrix(32, side) @ ones, torch.ones(side))
    torch.testing.assert_close(up_matrix(32, side) @ torch.ones(side), ones)
