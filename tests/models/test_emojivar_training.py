"""The training programs at their smoke size: they learn, they are seeded, and they resume."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from examples.emojivar import load, train_tokenizer, train_var
from examples.emojivar.config import SMOKE
from examples.emojivar.feed import Feed
from examples.emojivar.optim import (
    MovingAverage,
    Muon,
    cosine_decay,
    linear_decay,
    orthogonalise,
    warm_up,
)
from examples.emojivar.training import initial_tokenizer, parser, smoke
from examples.emojivar.weights import INDEX_NAME

SMALL_RUN = ["--smoke", "--device", "cpu", "--batch", "4", "--steps", "4", "--save-every", "2"]


def arguments_of(*extra: str) -> argparse.Namespace:
    options = parser("", 100)
    options.add_argument("--tokenizer", type=Path)
    options.add_argument("--freeze-tokens", action="store_true")
    return smoke(options.parse_args(["--smoke", "--device", "cpu", *extra]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a transformer after a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    train_tokenizer.main([*SMALL_RUN, "--out", str(folder)])
    train_var.main([*SMALL_RUN, "--out", str(folder), "--tokenizer", str(folder / "tokenizer.safetensors")])
    return folder


def test_tokenizer_learns() -> None:
    trainer = train_tokenizer.make_trainer(arguments_of())
    batch = trainer.feed.layouts[0]
    losses = [trainer.step(step, step / 8, batch)["pictures"] for step in range(8)]
    assert all(loss.isfinite() for loss in losses)
    assert losses[-1] < losses[0]
    assert all(parameter.isfinite().all() for parameter in trainer.tokenizer.parameters())


def test_features_keep_their_size() -> None:
    torch.manual_seed(0)
    noise = torch.randn(16, 8, 8, 8)
    losses = [train_tokenizer.moment_loss(scale * noise) for scale in (0.01, 0.1, 1.0, 10.0)]
    assert losses[0] > losses[1] > losses[2] < losses[3]
    assert losses[2] < 0.01
    assert train_tokenizer.moment_loss(noise + 1) > 0.9


def test_transformer_learns() -> None:
    trainer = train_var.make_trainer(arguments_of())
    batches = {train_var.is_full(step): trainer.feed.layouts[step] for step in range(4)}
    before = trainer.evaluate(8)
    for step in range(12):
        losses = trainer.step(step, step / 12, batches[train_var.is_full(step)])
        assert losses.keys() == {"loss" if train_var.is_full(step) else "early"}
        assert all(loss.isfinite() for loss in losses.values())
    assert trainer.evaluate(8) < before


def test_an_early_step_is_its_part_of_a_full_one(trained: Path) -> None:
    trainer = train_var.make_trainer(arguments_of("--init", str(trained)))
    assert trainer.early_scales == 2
    ids, images = trainer.feed.held_out(3)
    whole, early = (trainer.tokens(images, None, None, scales) for scales in (None, 2))
    end = SMOKE.ends[1]
    assert torch.equal(early.codes, whole.codes[:, :end])
    assert torch.equal(early.inputs, whole.inputs[:, : end - 1])
    logits = trainer.model(ids, whole.inputs)[:, :end]
    torch.testing.assert_close(trainer.model(ids, early.inputs), logits, rtol=1e-5, atol=1e-5)
    rest = train_var.weighted_loss(
        trainer.model(ids, whole.inputs)[:, end:], whole.codes[:, end:], trainer.weights[end:]
    )
    total = trainer.loss(trainer.model, ids, early) + rest
    torch.testing.assert_close(total, trainer.loss(trainer.model, ids, whole))


def test_inputs_that_cut_a_scale_are_refused(trained: Path) -> None:
    model = load(folder=trained)
    ids = torch.zeros(1, SMOKE.prompt_length, dtype=torch.int64)
    with pytest.raises(ValueError, match="whole scales"):
        model(ids, torch.zeros(1, 6, SMOKE.code_width))


def test_batches_do_not_depend_on_who_lays_them_out() -> None:
    alone, helped = (
        Feed(torch.device("cpu"), 64, lambda step: 1 + step % 3, seed=3, workers=workers)
        for workers in (0, 2)
    )
    for step, batch, other in zip(range(5, 9), alone.batches(5), helped.batches(5), strict=False):
        assert len(batch.ids) == 1 + step % 3
        assert torch.equal(batch.ids, other.ids)
        assert torch.equal(alone.paint(batch.scenes), helped.paint(other.scenes))


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

        def step(self: object, number: int, *rest: object) -> dict[str, torch.Tensor]:
            if number == 3:
                raise InterruptionError
            return original(self, number, *rest)

        patch.setattr(trainer, "step", step)
        with pytest.raises(InterruptionError):
            module.main([*SMALL_RUN, "--out", str(broken)])
    assert (broken / result).exists(), "each checkpoint leaves a result"
    module.main([*SMALL_RUN, "--out", str(broken)])
    expected, resumed = load_file(whole / result), load_file(broken / result)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, msg=name)


def test_both_programs_make_a_loadable_model(trained: Path) -> None:
    images = load(folder=trained).generate(["a cat"])
    assert images.shape == (1, 3, 64, 64)
    assert not (trained / "partial").exists()
    tokenizer = str(trained / "tokenizer.safetensors")
    with pytest.raises(ValueError, match="settings it was started with"):
        train_var.main([*SMALL_RUN, "--out", str(trained), "--tokenizer", tokenizer, "--seed", "1"])


def test_a_run_by_the_clock_ends_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--smoke", "--device", "cpu", "--batch", "2", "--out", str(tmp_path)]
    train_tokenizer.main([*run, "--minutes", "0.001"])
    first = load_file(tmp_path / "tokenizer.safetensors")
    assert "step 0" in capsys.readouterr().out
    train_tokenizer.main([*run, "--minutes", "0.0005"])
    assert "step" not in capsys.readouterr().out
    for name, value in load_file(tmp_path / "tokenizer.safetensors").items():
        assert torch.equal(value, first[name]), name
    with pytest.raises(SystemExit):
        train_tokenizer.main([*run, "--minutes", "1", "--steps", "3"])


def test_a_frozen_tokenizer_keeps_its_codes(trained: Path, tmp_path: Path) -> None:
    start = trained / "tokenizer.safetensors"
    run = [*SMALL_RUN, "--out", str(tmp_path), "--freeze-tokens"]
    train_tokenizer.main([*run, "--init", str(start)])
    before, after = load_file(start), load_file(tmp_path / "tokenizer.safetensors")
    for name in before:
        assert torch.equal(before[name], after[name]) != name.startswith("decoder."), name
    with pytest.raises(SystemExit):
        train_tokenizer.main(run)


def test_training_goes_on_from_given_weights(trained: Path) -> None:
    given = load(folder=trained)
    model = train_var.make_model(arguments_of("--init", str(trained)))
    for name, value in given.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    tokenizer = train_tokenizer.make_trainer(arguments_of("--init", str(trained))).tokenizer
    for name, value in given.tokenizer.state_dict().items():
        assert torch.equal(tokenizer.state_dict()[name], value), name


def test_other_codes_are_learnt_afresh(trained: Path, tmp_path: Path) -> None:
    train_tokenizer.main([*SMALL_RUN, "--out", str(tmp_path), "--seed", "5"])
    other = tmp_path / "tokenizer.safetensors"
    given = load(folder=trained)
    model = train_var.make_model(arguments_of("--init", str(trained), "--tokenizer", str(other)))
    assert torch.equal(model.tokenizer.codebook.weight, load_file(other)["codebook.weight"])
    assert torch.equal(model.blocks[0].attn.qkv.weight, given.blocks[0].attn.qkv.weight)
    assert not torch.equal(model.head.linear.weight, given.head.linear.weight)
    assert not torch.equal(model.code_embed.weight, given.code_embed.weight)


def test_weights_of_another_size_are_refused(trained: Path) -> None:
    run = parser("", 100).parse_args(["--device", "cpu", "--init", str(trained)])
    with pytest.raises(ValueError, match="choose another"):
        train_tokenizer.make_trainer(run)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        initial_tokenizer(trained / "nothing.safetensors", SMOKE)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_var.VARTrainer, "step", lambda *_: {"early": torch.tensor(float("nan"))})
    with pytest.raises(FloatingPointError, match="'early' requires a finite value, got nan"):
        train_var.main([*SMALL_RUN, "--out", str(tmp_path)])
    assert not (tmp_path / INDEX_NAME).exists()


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


def test_muon_reads_convolutions_as_matrices() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(2, 16, 8, 3, 3)
    filters, matrix = nn.Parameter(weight.clone()), nn.Parameter(weight.flatten(1).clone())
    filters.grad, matrix.grad = gradient.clone(), gradient.flatten(1).clone()
    for parameter in (filters, matrix):
        Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.1).step()
    assert torch.equal(filters.flatten(1), matrix)


def test_the_average_lags_and_arrives() -> None:
    model = nn.Linear(2, 2)
    average = MovingAverage(model, decay=0.9)
    start = average.model.weight.clone()
    with torch.no_grad():
        model.weight += 1
    average.update(model, step=0)
    torch.testing.assert_close(average.model.weight, start + 0.9)
    average.update(model, step=10_000)
    torch.testing.assert_close(average.model.weight, start + 0.91)
    assert not average.model.weight.requires_grad


def test_schedules() -> None:
    for schedule in (linear_decay, cosine_decay):
        factors = [schedule(step / 1000) for step in range(1001)]
        assert max(factors) == factors[0] == factors[400] == 1.0
        assert factors == sorted(factors, reverse=True)
        assert 0 < factors[-1] <= 0.02
    assert linear_decay(0.75, hold=0.5) == 0.5
    assert [warm_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
