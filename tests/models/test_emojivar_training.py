"""The training programs at their smoke size: they learn, they are seeded, and they resume."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from examples.emojivar import load, train_tokenizer, train_var
from examples.emojivar.optim import Muon, cosine_decay, linear_decay, orthogonalise
from examples.emojivar.training import Feed, parser, smoke

SMALL_RUN = ["--smoke", "--device", "cpu", "--batch", "4", "--steps", "4", "--save-every", "2"]


def arguments_of(*extra: str) -> argparse.Namespace:
    options = parser("", 100)
    options.add_argument("--tokenizer", type=Path)
    return smoke(options.parse_args(["--smoke", "--device", "cpu", *extra]))


def test_tokenizer_learns() -> None:
    trainer = train_tokenizer.make_trainer(arguments_of())
    losses = []
    trainer.feed = OneBatch(trainer.feed)
    for step in range(arguments_of().steps):
        losses.append(trainer.step(step)["pixels"])
    assert all(loss == loss for loss in losses)
    assert losses[-1] < losses[0]
    assert all(parameter.isfinite().all() for parameter in trainer.tokenizer.parameters())


def test_transformer_learns() -> None:
    trainer = train_var.make_trainer(arguments_of())
    before = trainer.evaluate(8)
    losses = [trainer.step(step)["loss"] for step in range(8)]
    assert all(loss == loss for loss in losses)
    assert trainer.evaluate(8) < before


class OneBatch(Feed):
    """Always the first batch, so that losses of different steps compare."""

    def __init__(self, feed: Feed) -> None:
        self.__dict__.update(feed.__dict__)

    def __call__(self, step: int) -> tuple[list, torch.Tensor]:
        return super().__call__(0)


class InterruptionError(Exception):
    """Stands for a killed run."""


@pytest.mark.parametrize(
    ("module", "trainer", "result"),
    [
        (train_tokenizer, train_tokenizer.TokenizerTrainer, "tokenizer.safetensors"),
        (train_var, train_var.VARTrainer, "emojivar-00001-of-00001.safetensors"),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_weights(
    module: object, trainer: type, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    module.main([*SMALL_RUN, "--out", str(whole)])
    with monkeypatch.context() as patch:
        original = trainer.step

        def step(self: object, number: int) -> dict[str, float]:
            if number == 3:
                raise InterruptionError
            return original(self, number)

        patch.setattr(trainer, "step", step)
        with pytest.raises(InterruptionError):
            module.main([*SMALL_RUN, "--out", str(broken)])
    assert not (broken / result).exists()
    module.main([*SMALL_RUN, "--out", str(broken)])
    expected, resumed = load_file(whole / result), load_file(broken / result)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, msg=name)


def test_both_programs_make_a_loadable_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer.main([*SMALL_RUN, "--out", str(tmp_path)])
    tokenizer = str(tmp_path / "tokenizer.safetensors")
    train_var.main([*SMALL_RUN, "--out", str(tmp_path), "--tokenizer", tokenizer])
    assert "held-out PSNR" in capsys.readouterr().out
    images = load(folder=tmp_path).generate(["a cat"])
    assert images.shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="settings it was started with"):
        train_var.main([*SMALL_RUN, "--out", str(tmp_path), "--tokenizer", tokenizer, "--seed", "1"])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        train_var.main(
            [*SMALL_RUN, "--out", str(tmp_path), "--tokenizer", str(tmp_path / "nothing.safetensors")]
        )


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (1, 16, 64)])
def test_orthogonalise_evens_out_the_spectrum(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
    assert values.max() < 1.4
    assert values.median() > 0.6


def test_muon_treats_a_stack_as_separate_squares() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(2, 48, 16)
    together = nn.Parameter(weight.clone())
    together.grad = gradient.clone()
    apart = [nn.Parameter(part.clone()) for part in weight.chunk(3)]
    for parameter, part in zip(apart, gradient.chunk(3), strict=True):
        parameter.grad = part.clone()
    group = {"params": [together], "stacked": True}
    Muon([group], lr=0.1, momentum=0.9, weight_decay=0.1).step()
    Muon(apart, lr=0.1, momentum=0.9, weight_decay=0.1).step()
    torch.testing.assert_close(together.data, torch.cat([p.data for p in apart]))


def test_schedules() -> None:
    for schedule in (linear_decay, cosine_decay):
        factors = [schedule(step, 1000) for step in range(1000)]
        assert factors[0] < 0.05
        assert max(factors) == factors[399] == 1.0
        assert factors[-1] <= 0.02
        assert min(factors) > 0
