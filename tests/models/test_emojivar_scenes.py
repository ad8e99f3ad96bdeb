"""The data: the committed atlas, and the scenes made from it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from examples.emojivar import parse
from examples.emojivar.atlas import ASSETS, TABLE_NAME, Atlas, cut_out, read_atlas, tint
from examples.emojivar.images import from_pil, save_png, to_pil
from examples.emojivar.prompt_sets import random_prompt
from examples.emojivar.scenes import SLOTS, make_scenes, render
from examples.emojivar.vocabulary import BACKGROUND_COLOURS, COLOURABLE, HUES, KINDS


def sprites_of(atlas: Atlas) -> torch.Tensor:
    return atlas.sprites.float() / 255


def test_atlas_holds_every_kind_and_hue(atlas: Atlas) -> None:
    names = {(kind, "") for kind in KINDS} | {(kind, hue) for kind in COLOURABLE for hue in HUES}
    assert set(atlas.rows) == names
    assert atlas.sprites.shape == (len(names), 4, 144, 144)
    colour, alpha = atlas.sprites[:, :3], atlas.sprites[:, 3:]
    assert (colour <= alpha).all(), "alpha is premultiplied"
    assert (atlas.sprites[:, 3].flatten(1).float().mean(1) > 20).all(), "no sprite is empty"
    assert "MIT" in json.loads((ASSETS / TABLE_NAME).read_text())["licence"]


def test_atlas_names_what_it_lacks(atlas: Atlas) -> None:
    with pytest.raises(ValueError, match="no red cat"):
        atlas.row("cat", "red")


def test_a_cut_sheet_is_refused(tmp_path: Path) -> None:
    (tmp_path / TABLE_NAME).write_text((ASSETS / TABLE_NAME).read_text())
    to_pil(torch.zeros(4, 8, 8, dtype=torch.uint8)).save(tmp_path / "atlas.png")
    with pytest.raises(ValueError, match=r"atlas\.png"):
        read_atlas(tmp_path)


def test_tints_differ_and_keep_the_outline(atlas: Atlas) -> None:
    for hue in HUES:
        made = tint(atlas.sprites[atlas.row("apple")], hue)
        committed = atlas.sprites[atlas.row("apple", hue)]
        assert torch.equal(made[3], atlas.sprites[atlas.row("apple"), 3])
        assert (made.int() - committed.int()).abs().max() <= 1


def test_cut_out_is_square_and_centred() -> None:
    pixels = torch.zeros(4, 60, 80, dtype=torch.uint8)
    pixels[:, 10:30, 20:60] = 255
    sprite = cut_out(to_pil(pixels))
    inside = sprite[3] > 127
    assert inside[72, 10:134].all()
    assert not inside[:30].any()
    assert not inside[-30:].any()


def test_scenes_depend_on_the_seed_alone(atlas: Atlas) -> None:
    prompts = [random_prompt(random.Random(i)) for i in range(8)]
    first, again, other = (
        render(make_scenes(prompts, atlas, seed), sprites_of(atlas), 64) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (8, 3, 64, 64)
    assert 0 <= first.min() <= first.max() <= 1 + 1e-6


def test_sizes_show_one_layout(atlas: Atlas) -> None:
    scenes = make_scenes([parse("a car and a star on a plain mint background")], atlas, 3)
    large, small = (render(scenes, sprites_of(atlas), size) for size in (256, 64))
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (shrunk - small).abs().mean() < 0.02


@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_positions_are_as_said(atlas: Atlas, relation: str) -> None:
    prompts = [parse(f"a cat {relation} of a dog")] * 64
    scenes = make_scenes(prompts, atlas, 0)
    gap = scenes.centres[:, 1] - scenes.centres[:, 0]
    axis = 0 if relation in ("left", "right") else 1
    along = gap[:, axis] if relation in ("left", "above") else -gap[:, axis]
    assert (along > 0).all()
    assert (along > gap[:, 1 - axis].abs()).float().mean() > 0.9


def test_objects_are_counted_present_and_inside(atlas: Atlas) -> None:
    prompts = [parse(p) for p in ("a cat", "two cats", "three cats", "four cats", "a cat and a dog")]
    scenes = make_scenes(prompts * 8, atlas, 1)
    assert scenes.present.sum(1).tolist() == [1, 2, 3, 4, 2] * 8
    shown = scenes.present
    edge = (scenes.sizes / 2)[..., None]
    assert ((scenes.centres >= edge - 1e-3) & (scenes.centres <= 256 - edge + 1e-3))[shown].all()
    assert scenes.sprites.shape == (40, SLOTS)


def test_objects_hardly_overlap(atlas: Atlas) -> None:
    prompts = [parse(p) for p in ("two cats", "three cats", "four cats", "a cat left of a dog")] * 32
    scenes = make_scenes(prompts, atlas, 2)
    apart = (scenes.centres[:, :, None] - scenes.centres[:, None]).abs().pow(3).sum(-1).pow(1 / 3)
    needed = (scenes.sizes[:, :, None] + scenes.sizes[:, None]) / 2
    pairs = scenes.present[:, :, None] & scenes.present[:, None] & ~torch.eye(SLOTS, dtype=torch.bool)
    assert (apart / needed)[pairs].min() > 0.85


def test_some_scenes_fill_the_picture(atlas: Atlas) -> None:
    scenes = make_scenes([parse("a cat"), parse("four cats")] * 64, atlas, 4)
    covered = (scenes.sizes.square() * scenes.present).sum(1) / 256**2
    for share in (covered[::2], covered[1::2]):
        assert (share > 0.55).sum() > 6
        assert (share < 0.5).sum() > 20


def test_textures_are_of_several_kinds_and_strengths(atlas: Atlas) -> None:
    prompts = [parse("a pig on a textured gray background")] * 48
    scenes = make_scenes(prompts, atlas, 0)
    assert set(scenes.pattern.tolist()) == {0, 1, 2}
    scenes.present[:] = False
    deviations = render(scenes, sprites_of(atlas), 64).std((1, 2, 3))
    plain = render(make_scenes([parse("a pig on a plain gray background")], atlas, 0), sprites_of(atlas), 64)
    assert deviations.min() > 0.02
    assert deviations.max() > 2 * deviations.min()
    assert plain[0, :, 0, 0].std() < 0.03


def test_backgrounds_are_as_said(atlas: Atlas) -> None:
    for name, colour in BACKGROUND_COLOURS.items():
        scenes = make_scenes([parse(f"a pig on a plain {name} background")], atlas, 0)
        median = render(scenes, sprites_of(atlas), 64)[0].flatten(1).median(1).values
        torch.testing.assert_close(median, torch.tensor(colour))


def test_pictures_survive_png(tmp_path: Path) -> None:
    from PIL import Image

    images = torch.rand(3, 3, 8, 8)
    save_png(images, tmp_path / "deep" / "grid.png", columns=2)
    with Image.open(tmp_path / "deep" / "grid.png") as image:
        grid = from_pil(image)
    assert grid.shape == (3, 20, 20)
    assert torch.equal(grid[:, :8, 12:], (images[1] * 255).round().to(torch.uint8))
    assert (grid[:, 12:, 12:] == 255).all()
