"""The page of ``toprovar report``: complete, self-contained, and as a browser shows it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import toprovar_compiler
from examples.emojivar import load
from tests.page_reader import Page
from tests.toy_generators import make
from tests.toy_painters import LAYERS, SCALES, SIDE, PaintingVAR
from toprovar_compiler import variants
from toprovar_compiler.cli import EXIT_OK, main
from toprovar_compiler.cli_model import paint
from toprovar_compiler.environment import environment
from toprovar_compiler.options import Options, parse_options
from toprovar_compiler.policies.calibration import calibration_for
from toprovar_compiler.report.images import AMPLIFIED
from toprovar_compiler.report.painting import paint_pairs
from toprovar_compiler.schedule import stated_schedule

PROMPTS = ("a <b>bold</b> & 'quoted' cat", "two apples")
SEED = 5
CHROMIUM = shutil.which("chromium")
BROWSER_SECONDS = 240
WIDTH = 1280
EMBEDDED_SCALES, EMBEDDED_LAYERS = 10, 16
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")


@pytest.fixture(scope="module", autouse=True)
def _uncompiled() -> Iterator[None]:
    """Everything but Inductor's code generation, which takes seconds a graph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)
        patch.setattr(sys, "path", list(sys.path))
        yield


def report(out: Path, model: str, *more: str) -> str:
    assert main(["report", "--model", model, "--device", "cpu", "--out", str(out), *more]) == EXIT_OK
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Two prompts by a toy, half of the tokens kept."""
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    out = tmp_path_factory.mktemp("toy") / "report.html"
    more = (*prompts, "--seed", str(SEED), "--keep-ratio", "0.5")
    return Page(report(out, "tests.toy_painters:toy", *more))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prompt by the embedded model."""
    out = tmp_path_factory.mktemp("embedded") / "report.html"
    report(out, "examples.emojivar:load", "--prompt", "a red mug on a plain white background")
    return out


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert re.search(r"https?://|url\(|@import", page.source) is None
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed"}
    for tag, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith("data:"), tag
        assert re.match(r"data:|#", attributes.get("href") or "#"), tag
        assert not [name for name in attributes if name.startswith("on")]


def test_the_page_is_well_formed(page: Page) -> None:
    assert page.source.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("title") == 1
    assert page.headings[0] == "toprovar report: toprovar, 2 prompts"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{target}" for target in ids]


def test_prompts_are_text(page: Page) -> None:
    assert f"1. {PROMPTS[0]}" in page.headings
    assert "<b>bold" not in page.source
    assert "&lt;b&gt;bold" in page.source
    assert any(PROMPTS[0] in alt for alt, _ in page.images())


def test_pictures(page: Page) -> None:
    images = page.images()
    pictures = [image for alt, image in images if "picture" in alt or "difference" in alt]
    assert [image.size for image in pictures] == [(SIDE, SIDE)] * 3 * len(PROMPTS)
    dense, pruned, difference = pictures[:3]
    expected = paint(make(PaintingVAR), [PROMPTS[0]], SEED)[0].mul(255).round()
    # Graphs add in another order than eager: a value near the middle may round to the next whole number.
    assert torch.allclose(pixels(dense), expected, rtol=0, atol=1)
    apart = (pixels(dense) - pixels(pruned)).abs() * AMPLIFIED
    assert apart.max() > 0
    # Two were rounded by up to a half each before this multiplied them, the third by a half afterwards.
    rounding = AMPLIFIED * (0.5 + 0.5) + 0.5
    assert torch.allclose(pixels(difference), apart.clamp(max=255), rtol=0, atol=rounding)
    overlays = [alt for alt, _ in images if "computed at scale" in alt]
    assert [alt.split(": ")[0][-1] for alt in overlays] == ["2", "3", "4"] * len(PROMPTS)


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_a_row_per_scale_and_a_column_per_layer(page: Page, number: int) -> None:
    kept = page.table("Tokens computed per scale and layer", number)
    shares = ["100.0 %"] * 2 + ["44.4 %", "50.0 %", "50.0 %"]
    tokens = [1, 4, 4, 8, 18]
    assert [row[1:] for row in kept] == [[s, *[str(n)] * LAYERS] for s, n in zip(shares, tokens, strict=True)]
    assert [row[0] for row in kept] == [f"{s} {n} x {n} tokens" for s, n in enumerate((1, 2, 3, 4, 6))]
    dense = page.table("Dense: every scale, every layer", number)
    assert len(dense) == SCALES
    assert all("nats" in row[0] and re.fullmatch(r"\d\.\d\d", row[1]) for row in dense[1:])
    assert dense[0][1:] == ["-"] * LAYERS
    assert len(page.table("Under toprovar: what its blocks returned", number)) == SCALES


def test_statistics_are_those_of_the_dense_maps(page: Page) -> None:
    painted = paint_pairs(make(PaintingVAR), PROMPTS, SEED, parse_options({"keep_ratio": 0.5}))
    calls = painted.pairs[0].dense.calls
    maps = {s: torch.stack([calls[s, n].entropy for n in range(LAYERS)]).double() for s in range(1, SCALES)}
    ratios = page.table("Low-entropy ratio (eq. 3): share of tokens below the scale's mean entropy")
    assert [row[0].split()[0] for row in ratios] == ["1", "2", "3", "4"]
    for row, entropy in zip(ratios, maps.values(), strict=True):
        mean = entropy.mean(0)
        assert row[1] == f"{(mean < mean.mean()).double().mean():.2f}"
        own = (entropy < entropy.mean(1, keepdim=True)).double().mean(1)
        assert row[2] == f"{own.min():.2f} to {own.max():.2f}"
    layers = page.table("Layers at scale 4 (6 x 6 tokens): singular values of the entropy map")
    for number, (row, image) in enumerate(zip(layers, maps[4].unflatten(1, (6, 6)), strict=True)):
        whole, less = torch.linalg.svdvals(image), torch.linalg.svdvals(image - image.mean())
        figures = (image.mean(), whole[0] / whole[1], less[0] / less[1])
        assert row == [str(number), *(f"{figure:.2f}" for figure in figures)]


def test_counters_are_the_summarys(page: Page) -> None:
    model = toprovar_compiler.compile(make(PaintingVAR), keep_ratio=0.5)
    for number, prompt in enumerate(PROMPTS):
        paint(model, [prompt], SEED + number)
    summary = toprovar_compiler.summary(model).to_dict()
    totals = dict(page.table("Totals"))
    single = {name: value for name, value in summary.items() if isinstance(value, int)}
    assert totals == {name.replace("_", " "): f"{value:,}" for name, value in single.items()}
    for name in ("per_scale", "per_layer"):
        shown = [[int(cell.replace(",", "")) for cell in row] for row in page.table(name.replace("_", " "))]
        assert shown == [list(row.values()) for row in summary[name]]
    assert summary["fallbacks"] == {}
    assert "fallbacks: none." in page.text


def test_decisions_and_origin(page: Page) -> None:
    options = {row[0]: row[1:] for row in page.table("Options of the policy")}
    assert set(options) == set(vars(Options()))
    assert options["keep_ratio"] == ["0.5", "given"]
    assert options["restoration"] == ["scale-exit", "default"]
    assert options["entropy_source"] == ["not set", "default"]
    assert page.text.count("first pruned scale: 2") == len(PROMPTS)
    facts = dict(page.table("Environment"))
    assert facts["torch"] == torch.__version__
    assert facts["python"] == environment()["python"]
    assert {"commit", "device", "dtype", "model"} <= set(facts)
    assert "toprovar " in page.text


def test_the_embedded_model(embedded: Path) -> None:
    page = Page(embedded.read_text(encoding="utf-8"))
    for caption in ("Tokens computed per scale and layer", "Dense: every scale, every layer"):
        rows = page.table(caption)
        assert len(rows) == EMBEDDED_SCALES
        assert {len(row) for row in rows} <= {EMBEDDED_LAYERS + 1, EMBEDDED_LAYERS + 2}
    model = load(torch.device("cpu"), torch.float32)
    calibration = calibration_for(model, stated_schedule(model), None)
    assert calibration is not None, "it comes with the package"
    pruned = sum(ratio < 1 for ratio in calibration.plan.keep_ratio)
    large = [image.size == (256, 256) for _, image in page.images()]
    assert large[: 4 + pruned] == [True] * (3 + pruned) + [False], "pictures, difference, kept tokens"
    assert "fallbacks: none." in page.text
    assert "mean 0.0" in page.text


@needs_browser
def test_a_browser_reads_the_page(embedded: Path, tmp_path: Path) -> None:
    """The page as it is: it loads without a complaint, and what is there without a script is all of it."""
    shown = browse(tmp_path, embedded, "--dump-dom", "--enable-logging=stderr")
    assert "CONSOLE" not in shown.stderr
    assert Page(shown.stdout).tables == Page(embedded.read_text(encoding="utf-8")).tables


@needs_browser
def test_nothing_is_wider_than_the_window_and_every_image_is_drawn(embedded: Path, tmp_path: Path) -> None:
    script = (
        "<script>addEventListener('load', () => { const page = document.documentElement;"
        "const drawn = [...document.images].filter(image => image.naturalWidth > 0);"
        "page.dataset.seen = [page.scrollWidth, page.clientWidth, drawn.length].join(' '); })</script>"
    )
    source = embedded.read_text(encoding="utf-8")
    measured = tmp_path / "measured.html"
    # Only this copy may run a script.
    measured.write_text(source.replace("default-src", "unused").replace("</body>", f"{script}</body>"))
    seen = re.search(r'data-seen="(\d+) (\d+) (\d+)"', browse(tmp_path, measured, "--dump-dom").stdout)
    assert seen is not None
    width, window, drawn = (int(number) for number in seen.groups())
    assert width <= window <= WIDTH
    assert drawn == len(Page(source).images())


@needs_browser
@pytest.mark.parametrize(("scheme", "paper"), [(0, (23, 23, 27)), (1, (255, 255, 255))])
def test_dark_and_light(embedded: Path, tmp_path: Path, scheme: int, paper: tuple[int, ...]) -> None:
    shot = tmp_path / "shot.png"
    browse(tmp_path, embedded, f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={scheme}")
    picture = Image.open(shot).convert("RGB")
    assert picture.width == WIDTH
    assert picture.getpixel((2, 2)) == paper
    colours = picture.getcolors(picture.width * picture.height)
    assert colours is not None
    assert len(colours) > 256


def browse(folder: Path, page: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Headless Chromium with a profile of its own; as root it runs without its sandbox, or not at all."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--disable-gpu", f"--window-size={WIDTH},900"]
    command += [f"--user-data-dir={folder / 'profile'}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    return subprocess.run(
        [*command, *more, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=BROWSER_SECONDS,
        check=True,
    )


def pixels(picture: Image.Image) -> Any:
    """[3, H, W] float, 0 to 255."""
    flat = torch.tensor(list(picture.convert("RGB").tobytes()), dtype=torch.float32)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1)
