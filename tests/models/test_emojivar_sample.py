"""The sampling program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from examples.emojivar import EmojiVAR, sample
from examples.emojivar.weights import save


@pytest.fixture
def weights(small_model: Callable[..., EmojiVAR], tmp_path: Path) -> str:
    save(small_model(torch.float32), tmp_path / "weights")
    return str(tmp_path / "weights")


def test_it_writes_a_picture_per_prompt(weights: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sample.png"
    sample.main(["a cat", "two dogs", "--weights", weights, "--device", "cpu", "--out", str(out)])
    with Image.open(out) as image:
        assert image.size == (96 * 2 + 4, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["a zebra"], "'zebra'"), (["a cat", "--guidance", "nan"], "guidance")],
)
def test_mistakes_end_with_one_line(
    weights: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sample.main([*arguments, "--weights", weights, "--device", "cpu"])
    assert message in capsys.readouterr().err


def test_missing_weights_end_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sample.main(["a cat", "--weights", str(tmp_path), "--device", "cpu"])
    assert "is missing" in capsys.readouterr().err
