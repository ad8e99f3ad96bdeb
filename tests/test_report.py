"""``toprovar report``: what is recorded, that recording changes nothing, and bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import toprovar_compiler
from tests.page_reader import Page
from tests.toy_generators import make
from tests.toy_painters import LAYERS, SCALES, SIDE, PaintingVAR, toy
from toprovar_compiler import variants
from toprovar_compiler.cli import EXIT_ERROR, EXIT_OK, main
from toprovar_compiler.cli_model import paint
from toprovar_compiler.options import parse_options
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.dense import DensePolicy
from toprovar_compiler.report.images import AMPLIFIED, RAMP, UNKNOWN, difference, heat_map, small
from toprovar_compiler.report.markup import Markup, element, markup, table
from toprovar_compiler.report.painting import Painted, paint_pairs
from toprovar_compiler.report.recording import Recorder

CPU = torch.device("cpu")
PROMPTS = ("a cat", "two apples")
SEED = 3
TOKENS = (1, 4, 9, 16, 36)


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but Inductor's code generation, which takes seconds a graph."""
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)
    monkeypatch.setattr(sys, "path", list(sys.path))


def painted(**options: Any) -> Painted:
    return paint_pairs(toy(CPU, torch.float32), PROMPTS, SEED, parse_options(options))


@pytest.fixture(scope="module")
def half() -> Painted:
    """Half of the tokens kept, by a toy that has painted nothing before."""
    model = make(PaintingVAR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)
        return paint_pairs(model, PROMPTS, SEED, parse_options({"keep_ratio": 0.5}))


def test_recording_changes_no_picture_and_no_count(half: Painted) -> None:
    model = toprovar_compiler.compile(make(PaintingVAR), keep_ratio=0.5)
    for number, (prompt, pair) in enumerate(zip(PROMPTS, half.pairs, strict=True)):
        assert torch.equal(pair.pruned.picture, paint(model, [prompt], SEED + number)[0])
    assert half.summary.to_dict() == toprovar_compiler.summary(model).to_dict()


def test_the_dense_picture_is_the_eager_one(half: Painted) -> None:
    for number, (prompt, pair) in enumerate(zip(PROMPTS, half.pairs, strict=True)):
        torch.testing.assert_close(pair.dense.picture, paint(make(PaintingVAR), [prompt], SEED + number)[0])
        assert not torch.equal(pair.dense.picture, pair.pruned.picture)


def test_every_call_is_recorded(half: Painted) -> None:
    pair = half.pairs[0]
    places = {(scale, layer) for scale in range(SCALES) for layer in range(LAYERS)}
    assert set(pair.dense.calls) == set(pair.pruned.calls) == places
    for (scale, layer), call in pair.pruned.calls.items():
        due = TOKENS[scale]
        assert (call.tokens, call.kept) == (due, round(due / 2) if scale >= 2 else due), layer
    for (scale, _), call in pair.dense.calls.items():
        assert call.kept == TOKENS[scale]
        if scale > 0:
            assert call.entropy is not None
            assert call.entropy.shape == (TOKENS[scale],)
            keys = sum(TOKENS[: scale + 1])
            assert 0 <= call.entropy.min() <= call.entropy.max() <= torch.tensor(keys).log() + 1e-6


def test_a_pruned_call_has_the_entropy_of_kept_tokens_only(half: Painted) -> None:
    pair = half.pairs[0]
    first, entropy = pair.pruned.calls[2, 0], pair.pruned.calls[2, 0].entropy
    assert entropy is not None
    known = entropy.isfinite()
    assert int(known.sum()) == first.kept
    assert torch.equal(known, pair.pruned.kept[2] == 1)
    # Nothing was pruned before this scale: its first layer's queries and keys are those of the dense run.
    assert pair.pruned.calls[1, 0].entropy is not None
    torch.testing.assert_close(pair.pruned.calls[1, 0].entropy, pair.dense.calls[1, 0].entropy)


def test_the_mean_over_heads_of_the_first_row_is_recorded_at_the_places_that_ran() -> None:
    recorder, stream = Recorder(DensePolicy()), torch.zeros(2, 9, 4)
    entropy = torch.arange(24.0).reshape(2, 3, 4).square()
    kept = torch.tensor([[0, 3, 4, 8], [1, 2, 3, 5]])
    recorder.observe(Step(2, 1, 9, 5, 2, 1), Outcome(entropy, kept, stream, stream, 9))
    recorder.observe(Step(2, 2, 9, 5, 2, 1), Outcome(None, None, stream, stream, 14))
    calls = recorder.take_calls()
    assert (calls[2, 1].tokens, calls[2, 1].kept, calls[2, 2].entropy) == (9, 4, None)
    mean = [(a**2 + (a + 4) ** 2 + (a + 8) ** 2) / 3 for a in range(4)]
    expected = torch.full((9,), torch.nan).index_copy(0, kept[0], torch.tensor(mean))
    torch.testing.assert_close(calls[2, 1].entropy, expected, equal_nan=True)


def test_a_policy_without_entropy_is_asked_for_none() -> None:
    calls = painted(policy="random").pairs[0].pruned.calls.values()
    # A pruned block gives it at no cost; one that runs in full gives it when asked.
    assert all(call.entropy is None for call in calls if call.kept == call.tokens)


def test_scales_that_are_not_run_have_no_calls() -> None:
    run = painted(policy="fixed-exit", start_scale=3)
    assert {scale for scale, _ in run.pairs[0].pruned.calls} == {0, 1, 2}
    assert {scale for scale, _ in run.pairs[0].dense.calls} == set(range(SCALES))
    assert float(run.pairs[0].pruned.kept[4].sum()) == 0


def test_heat_map_colours() -> None:
    picture = heat_map(torch.tensor([1.0, 3.0, torch.nan, 2.0]), 1.0, 3.0)
    assert picture.size == (2, 2)

    def colour(x: int, y: int) -> str:
        return "#{:02x}{:02x}{:02x}".format(*picture.getpixel((x, y)))

    assert (colour(0, 0), colour(1, 0), colour(0, 1)) == (RAMP[0], RAMP[-1], UNKNOWN)
    assert colour(1, 1) == RAMP[len(RAMP) // 2]


@pytest.mark.parametrize("count", [1, 6])
def test_heat_map_of_equal_values_and_of_a_line(count: int) -> None:
    picture = heat_map(torch.full((count,), 0.7), 0.7, 0.7)
    assert picture.size == (count, 1)
    assert "#{:02x}{:02x}{:02x}".format(*picture.getpixel((0, 0))) == RAMP[0]


def test_difference_is_amplified_and_clipped() -> None:
    a = torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1)
    b = torch.tensor([0.5, 0.6, 0.0]).view(3, 1, 1)
    assert difference(a, b).getpixel((0, 0)) == (0, round(0.1 * AMPLIFIED * 255), 255)


def test_small_never_enlarges() -> None:
    picture = difference(torch.zeros(3, 4, 8), torch.ones(3, 4, 8))
    assert small(picture, 16).size == (8, 4)
    assert small(picture, 4).size == (4, 2)
    assert picture.size == (8, 4)


def test_text_cannot_become_a_tag() -> None:
    assert markup("<b>", Markup("<i>")) == "&lt;b&gt;<i>"
    assert element("p", "a & b", title='"') == '<p title="&quot;">a &amp; b</p>\n'
    assert "&lt;b&gt;" in table("<b>", ["<b>"], [["<b>"]])
    assert "<b>" not in table("<b>", ["<b>"], [["<b>"]])


def command(out: Path, *more: str) -> list[str]:
    return ["report", "--device", "cpu", "--out", str(out), *more]


@pytest.mark.parametrize(
    ("arguments", "out", "expected"),
    [
        ([], "a.html", "requires at least one prompt, got none; add --prompt TEXT"),
        (["--prompt", " "], "a.html", "--prompt requires a text, got an empty one"),
        (["--prompt", "a"], "a.htm", "--out requires a file that ends in .html, got 'a.htm'"),
        (["--prompt", "a"], "none/a.html", "requires a file in a folder that exists, got"),
        (["--prompt", "a"], "folder.html", "requires a file that can be written, got"),
        (
            ["--prompt", "a", "--model", "tests.toy_painters:nothing"],
            "a.html",
            "got (0, 3, 24, 24) for 1 prompt",
        ),
        (["--prompt", "a", "--keep-ratio", "2"], "a.html", "keep_ratio requires a number in (0, 1], got 2"),
        (["--prompt", "a", "--start-scale", "9"], "a.html", "start_scale requires a scale of the model's"),
        (
            ["--prompt", "a", "--model", "tests.toy_painters:mixing", "--strict"],
            "a.html",
            "strict=True, and pruning was not possible",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], out: str, expected: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    given = arguments if "--model" in arguments else ["--model", "tests.toy_painters:toy", *arguments]
    assert main(command(tmp_path / out, *given)) == EXIT_ERROR
    output = capsys.readouterr()
    last = output.err.splitlines()[-1]
    assert last.startswith("toprovar: error: ")
    assert expected in last
    assert output.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_a_folder_that_fills_up_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    arguments = command(tmp_path / "a.html", "--model", "tests.toy_painters:toy", "--prompt", "a")
    assert main(arguments) == EXIT_ERROR
    assert "No space left on device" in capsys.readouterr().err


def test_a_graph_that_cannot_be_pruned_is_said_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.html"
    arguments = command(out, "--model", "tests.toy_painters:mixing", "--prompt", "a cat")
    with pytest.warns(UserWarning, match="pruned nothing"):
        assert main(arguments) == EXIT_OK
    page = Page(out.read_text(encoding="utf-8"))
    reasons = page.table("fallbacks")
    assert reasons
    assert "aten.conv1d.default is not known to act on each token alone" in reasons[0][0]
    assert "Nothing was skipped." in page.text
    assert f"No block returned the entropy of its attention: {reasons[0][0]}" in page.text
    assert "the pictures are equal" in page.text
    assert str(out) in capsys.readouterr().out


def test_values_that_are_not_finite_are_drawn_and_said(tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    assert main(command(out, "--model", "tests.toy_painters:broken", "--prompt", "a cat")) == EXIT_OK
    assert f"({3 * SIDE} values are not finite: drawn black or white)" in Page(out.read_text()).text
