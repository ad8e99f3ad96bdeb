"""The pictures of a calibration: that they are written, and that they show its numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.calibration.painters import LAYERS, PROMPTS
from tests.policies.calibrations import PLAN, calibration
from tests.toy_generators import ClassVAR, make
from toprovar_compiler.calibration import plots
from toprovar_compiler.calibration.plots import (
    Findings,
    draw,
    layers_figure,
    plans_figure,
    scales_figure,
)
from toprovar_compiler.cli import EXIT_ERROR, EXIT_OK, main
from toprovar_compiler.errors import OptionError
from toprovar_compiler.policies.layer_spectrum import centred_spectrum, raw_spectrum

Command = Callable[..., list[str]]
PICTURES = 3


def _maps(layers: int = LAYERS) -> torch.Tensor:
    return 0.5 + 0.1 * torch.rand(
        layers, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


@pytest.fixture(scope="module")
def findings() -> Findings:
    generator = torch.Generator().manual_seed(1)
    shares = {
        scale: torch.rand(2, PICTURES, generator=generator, dtype=torch.float64) for scale in range(1, 5)
    }
    started = {scale: torch.rand(PICTURES, generator=generator, dtype=torch.float64) for scale in (3, 4)}
    record = {"measured": {"ssim": 0.87, "times_fewer_flops": 2.1}}
    return Findings(
        calibration=calibration(make(ClassVAR), record=record),
        pictures=shares,
        pruned_from=started,
        pruned_to=0.1,
        layers=(4, _maps()),
    )


def _is_drawn(path: Path) -> bool:
    """Whether a picture has several colours on white, and is of a size to look at."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        colours = picture.convert("RGB").getcolors(picture.width * picture.height)
        assert colours is not None
        return min(picture.size) > 200 and len(colours) > 50


def test_the_command_writes_them_and_the_file_is_the_same(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "c.json", tmp_path / "new" / "plots"
    assert main(command("plain", out, "--target-speedup", "2.5", "--plots", str(folder))) == EXIT_OK
    assert {path.name for path in folder.iterdir()} == {plots.SCALES, plots.LAYERS, plots.PLANS}
    assert all(_is_drawn(path) for path in folder.iterdir())
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("wrote ")
    assert printed.out.count(str(folder)) == 3
    assert printed.err.count("from scale 3 on, 10% of the tokens") == len(PROMPTS[::2])


def test_where_no_folder_can_be_is_refused_before_anything_is_painted(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    given = command("plain", tmp_path / "c.json", "--plots", str(tmp_path / "file"))
    assert main(given) == EXIT_ERROR
    output = capsys.readouterr()
    assert "--plots requires a folder, got" in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "c.json.parts").exists()


def test_the_scales_show_every_picture(findings: Findings) -> None:
    figure = scales_figure(findings)
    entropy, ratio, bar = figure.axes
    assert (entropy.get_ylabel(), ratio.get_ylabel()) == ("mean entropy / log keys", "low-entropy ratio rho")
    assert bar.get_ylabel() == "SSIM, 10% kept from this scale on"
    for row, axes in enumerate((entropy, ratio)):
        x, y = axes.lines[0].get_data()
        assert list(x) == [1, 2, 3, 4]
        np.testing.assert_allclose(y, [pair[row].numpy().mean() for pair in findings.pictures.values()])
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert ticks == ["1\n2x2", "2\n3x3", "3\n4x4", "4\n6x6"]
    (points,) = [c for c in ratio.collections if c.get_array() is not None]
    expected = [(s, r) for s in (3, 4) for r in findings.pictures[s][1].tolist()]
    np.testing.assert_allclose(points.get_offsets(), expected)
    ssim = [value for scale in (3, 4) for value in findings.pruned_from[scale].tolist()]
    np.testing.assert_allclose(points.get_array(), ssim)


def test_the_plans_are_a_line_of_quality_over_flops(findings: Findings) -> None:
    (axes,) = plans_figure(findings.calibration).axes
    line, default, measured = axes.lines
    plans = sorted((PLAN, *findings.calibration.plans), key=lambda plan: plan.times_fewer)
    np.testing.assert_allclose(line.get_xydata(), [(plan.times_fewer, plan.ssim) for plan in plans])
    np.testing.assert_allclose(default.get_xydata(), [(PLAN.times_fewer, PLAN.ssim)])
    np.testing.assert_allclose(measured.get_xydata(), [(2.1, 0.87)])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("FLOPs, times fewer", "SSIM to dense")
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "plans, expected",
        "the default",
        "the default, measured",
    ]


@pytest.mark.parametrize("layers", [1, 3, 8, 11])
def test_every_layer_has_its_map_and_its_ratios(layers: int) -> None:
    maps = _maps(layers)
    figure = layers_figure(4, maps)
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == layers
    for layer, axes in enumerate(drawn):
        np.testing.assert_array_equal(axes.images[0].get_array(), maps[layer])
        raw, centred = raw_spectrum(maps[layer]).ratio, centred_spectrum(maps[layer]).ratio
        assert axes.get_title() == f"layer {layer}\n{raw:.1f}, {centred:.2f}"


def test_a_model_without_square_scales_has_no_layer_map(findings: Findings, tmp_path: Path) -> None:
    bare = Findings(findings.calibration, findings.pictures, {}, 0.1, None)
    assert [path.name for path in draw(bare, tmp_path)] == [plots.SCALES, plots.PLANS]
    assert all(_is_drawn(path) for path in tmp_path.iterdir())


def test_what_cannot_be_written_is_one_error(findings: Findings, tmp_path: Path) -> None:
    (tmp_path / plots.SCALES).mkdir()
    with pytest.raises(OptionError, match="--plots requires a folder that can be written, got"):
        draw(findings, tmp_path)
