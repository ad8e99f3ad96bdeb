"""The detector's parts: targets of scenes, reading of maps, damage to pictures, and the network itself."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from examples.emojivar import parse
from examples.emojivar.atlas import Atlas
from examples.emojivar.checker import Checker
from examples.emojivar.checker.accuracy import mark, mark_objects
from examples.emojivar.checker.decode import Detection, decode, overlap
from examples.emojivar.checker.degrade import blur, degrade, quantise_blocks
from examples.emojivar.checker.losses import losses_of
from examples.emojivar.checker.net import HUE_CLASSES, SMOKE, CheckerNet, Maps
from examples.emojivar.checker.targets import (
    Labels,
    Targets,
    backgrounds_of,
    boxes_of,
    coverage,
    label,
    make_targets,
    sprite_names,
)
from examples.emojivar.checker.train import mix_objects
from examples.emojivar.prompt_sets import held_out_prompts, random_prompt
from examples.emojivar.scenes import Scenes, make_scenes, render
from examples.emojivar.vocabulary import BACKGROUND_COLOURS, COLOURABLE, HUES, KINDS, STYLES

SURE = 9.0  # a logit


@pytest.fixture(scope="module")
def labels(atlas: Atlas) -> Labels:
    return label(atlas)


@pytest.fixture(scope="module")
def scenes(atlas: Atlas) -> Scenes:
    return make_scenes(held_out_prompts(24, seed=1), atlas, 1)


@pytest.fixture(scope="module")
def net() -> CheckerNet:
    """A tiny network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CheckerNet(SMOKE).eval()


def perfect(targets: Targets) -> Maps:
    """The maps of a network that knows the targets."""
    return Maps(
        objectness=torch.where(targets.inside, SURE, -SURE)[:, None],
        offsets=targets.offsets,
        sizes=targets.sizes,
        kinds=2 * SURE * F.one_hot(targets.kinds, len(KINDS)).permute(0, 3, 1, 2).float(),
        hues=2 * SURE * F.one_hot(targets.hues, HUE_CLASSES).permute(0, 3, 1, 2).float(),
        mask=torch.where(targets.mask, SURE, -SURE),
        styles=SURE * F.one_hot(targets.styles, len(STYLES)).float(),
        colours=SURE * (2 * targets.colours - 1),
        features=torch.zeros(len(targets.styles), 1),
    )


def test_labels_name_the_rows_of_the_atlas(atlas: Atlas, labels: Labels) -> None:
    assert {name: row for row, name in enumerate(sprite_names(labels, range(len(labels.kinds))))} == {
        (kind, hue or None): row for (kind, hue), row in atlas.rows.items()
    }
    assert ((labels.extents > 0.5) & (labels.extents <= 1)).all()
    assert (labels.extents.amax(1) > 0.9).all()
    per_kind = torch.zeros(len(KINDS)).index_add_(0, labels.kinds, labels.weights)
    torch.testing.assert_close(per_kind, torch.ones(len(KINDS)))


def test_the_middle_of_a_sprite_is_that_of_its_cell(labels: Labels) -> None:
    opaque = labels.alpha[:, 0] > 0.5
    for lines in (opaque.any(1), opaque.any(2)):
        first, last = lines.int().argmax(1), 144 - lines.flip(1).int().argmax(1)
        assert ((first + last) / 2 - 72).abs().max() <= 1


def test_true_maps_are_read_as_the_truth(scenes: Scenes, labels: Labels) -> None:
    readings = decode(perfect(make_targets(scenes, labels)))
    masks = F.interpolate(make_targets(scenes, labels).mask.float(), scale_factor=2)[:, 0] > 0
    marks = mark(held_out_prompts(24, seed=1), scenes, labels, readings, masks)
    for each in marks:
        assert each.answers["whole scene"] == [1.0]
        assert min(each.answers["mask IoU"]) > 0.94
        assert each.score.correct, each


def test_boxes_are_tight(scenes: Scenes, labels: Labels) -> None:
    alone = replace(scenes, present=torch.arange(4).eq(0).expand(24, 4))
    mask = coverage(alone, labels, 256)[:, 0] > 0.5
    boxes = boxes_of(alone, labels)
    for index in range(24):
        rows, columns = mask[index].any(1).nonzero(), mask[index].any(0).nonzero()
        low = torch.stack([columns.min(), rows.min()])
        high = torch.stack([columns.max(), rows.max()]) + 1
        centre, size = boxes.centres[index, 0], boxes.sizes[index, 0]
        # a pixel of the atlas, and the rounding to whole pixels at either end
        assert (low - (centre - size / 2)).abs().max() < 2.5
        assert (high - (centre + size / 2)).abs().max() < 2.5


def test_coverage_is_what_the_sprites_hide(atlas: Atlas, labels: Labels, scenes: Scenes) -> None:
    sprites = atlas.sprites.float() / 255
    empty = replace(scenes, present=torch.zeros_like(scenes.present))
    changed = (render(scenes, sprites) - render(empty, sprites)).abs().amax(1) > 0.1
    covered = coverage(scenes, labels, 256)[:, 0]
    assert (covered[changed] > 0.05).all()
    assert changed[covered > 0.95].float().mean() > 0.9


def test_backgrounds_are_read_off_scenes(atlas: Atlas) -> None:
    prompts = [random_prompt(random.Random(seed), held_out=True) for seed in range(40)]
    styles, colours = backgrounds_of(make_scenes(prompts, atlas, 0))
    for prompt, style, row in zip(prompts, styles.tolist(), colours.tolist(), strict=True):
        assert prompt.background is not None
        assert STYLES[style] == prompt.background.style
        named = {name for name, there in zip(BACKGROUND_COLOURS, row, strict=True) if there}
        assert named == set(prompt.background.colours)


def test_every_object_has_a_cell_and_far_cells_have_none(scenes: Scenes, labels: Labels) -> None:
    targets = make_targets(scenes, labels)
    assert not (targets.inside & targets.outside).any()
    for index in range(24):
        for slot in scenes.present[index].nonzero()[:, 0].tolist():
            column, row = (scenes.centres[index, slot] / 8).long().tolist()
            assert targets.inside[index, row, column]
            assert int(targets.kinds[index, row, column]) == int(labels.kinds[scenes.sprites[index, slot]])
    assert (targets.inside.sum((1, 2)) <= 4 * scenes.present.sum(1)).all()


def test_the_loss_prefers_the_truth(scenes: Scenes, labels: Labels) -> None:
    targets = make_targets(scenes, labels)
    best = losses_of(perfect(targets), targets)
    # a judged cell costs at most exp(-SURE); what all of them cost is shared by those that report an object
    judged, reporting = int((targets.inside | targets.outside).sum()), int(targets.inside.sum())
    assert sum(best.values()) < math.exp(-SURE) * judged / reporting + 0.001
    for name, field in (("objects", "objectness"), ("kinds", "kinds"), ("hues", "hues"), ("mask", "mask")):
        worse = perfect(targets)._replace(**{field: -getattr(perfect(targets), field)})
        assert losses_of(worse, targets)[name] > best[name] + 1, name
    for name in ("offsets", "sizes", "styles", "colours"):
        worse = perfect(targets)._replace(**{name: getattr(perfect(targets), name).roll(1, 1) + 0.5})
        assert losses_of(worse, targets)[name] > best[name] + 0.05, name


def test_two_peaks_on_one_object_are_one_detection(scenes: Scenes, labels: Labels) -> None:
    maps = perfect(make_targets(make_scenes_of(scenes), labels))
    row, column = divmod(int(maps.objectness[0].argmax()), 32)
    far = (row + 4) % 32, column
    maps.objectness[0, 0, far[0], far[1]] = SURE - 1
    maps.sizes[0, :, far[0], far[1]] = maps.sizes[0, :, row, column]
    maps.offsets[0, :, far[0], far[1]] = maps.offsets[0, :, row, column] - torch.tensor([0.0, 1.0])
    assert len(decode(maps)[0].detections) == 1
    maps.sizes[0, :, far[0], far[1]] = 0.0
    assert len(decode(maps)[0].detections) == 2


def make_scenes_of(scenes: Scenes) -> Scenes:
    """The same with one large object each, in the middle."""
    return replace(
        scenes,
        present=torch.arange(4).eq(0).expand(24, 4),
        centres=torch.full_like(scenes.centres, 128.0),
        sizes=torch.full_like(scenes.sizes, 150.0),
    )


def test_unsure_objects_are_left_out(scenes: Scenes, labels: Labels) -> None:
    maps = perfect(make_targets(scenes, labels))
    maps = maps._replace(objectness=maps.objectness - SURE - 1)  # a probability of 0.27
    assert [reading.detections for reading in decode(maps)] == [[]] * 24
    assert all(reading.detections for reading in decode(maps, least_score=0.2))


def test_overlap_of_boxes() -> None:
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_objects_are_matched_one_to_one() -> None:
    names: list[tuple[str, str | None]] = [("mug", "red"), ("cat", None)]
    right = [Detection("mug", "red", (0, 0, 40, 40), 0.9), Detection("cat", None, (80, 0, 120, 40), 0.9)]
    centres = [(20.0, 20.0), (100.0, 20.0)]
    assert mark_objects(names, centres, right) == {"kind": [1, 1], "place": [1, 1], "hue": [1]}
    assert mark_objects(names, centres, right[1:]) == {"kind": [0, 1], "place": [0, 1], "hue": [0]}
    twice = [right[0], right[0]]
    assert mark_objects(names, centres, twice) == {"kind": [1, 0], "place": [1, 0], "hue": [1]}
    moved = [(20.0, 29.0), (100.0, 27.0)]
    assert mark_objects(names, moved, right) == {"kind": [1, 1], "place": [0, 1], "hue": [1]}
    other = [right[0]._replace(hue="blue"), right[1]._replace(kind="dog")]
    assert mark_objects(names, centres, other) == {"kind": [1, 0], "place": [1, 1], "hue": [0]}


def test_mixed_scenes_show_what_prompts_do_not(atlas: Atlas, labels: Labels) -> None:
    scenes = make_scenes([parse("four cats")] * 200, atlas, 0)
    torch.manual_seed(0)
    mixed = mix_objects(scenes, labels, 0.5)
    changed = (mixed.sprites != scenes.sprites).any(1)
    assert 70 < int(changed.sum()) < 130
    names = sprite_names(labels, mixed.sprites[changed].flatten().tolist())
    assert len({kind for kind, _ in names}) > 50
    tinted = sum(hue is not None for _, hue in names) / len(names)
    share = len(COLOURABLE) / len(KINDS) * len(HUES) / (1 + len(HUES))
    assert abs(tinted - share) < 0.1  # five standard deviations of 400 draws


def test_damage_is_slight_seeded_and_of_several_kinds(atlas: Atlas, scenes: Scenes) -> None:
    images = render(scenes, atlas.sprites.float() / 255)
    damaged, again = (degrade(images, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(damaged, again)
    assert damaged.shape == images.shape
    assert 0 <= damaged.min() <= damaged.max() <= 1
    change = (damaged - images).abs().mean((1, 2, 3))
    assert (change == 0).any()
    assert change.max() < 0.06
    assert (change > 0.01).sum() > 8


def test_blur_keeps_the_mean_and_flattens() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert blur(images).var() < 0.2 * images.var()
    flat = torch.full((1, 3, 16, 16), 0.3, dtype=torch.float64)
    torch.testing.assert_close(blur(flat), flat)


def test_blocks_are_rounded_within_themselves() -> None:
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fine, coarse = (
        quantise_blocks(images, torch.full((2, 1, 1, 1), step, dtype=torch.float64)) for step in (0.0, 0.1)
    )
    torch.testing.assert_close(fine, images, rtol=0, atol=1e-4)
    assert 0.01 < (coarse - images).abs().mean() < 0.2
    changed = images.clone()
    changed[..., 8:16, 8:16] = 0
    again = quantise_blocks(changed, torch.full((2, 1, 1, 1), 0.1, dtype=torch.float64))
    outside = torch.ones(32, 48, dtype=torch.bool)
    outside[8:16, 8:16] = False
    torch.testing.assert_close(again[..., outside], coarse[..., outside], rtol=0, atol=1e-12)


def test_the_network_answers_at_its_strides(net: CheckerNet) -> None:
    maps = net(torch.rand(2, 3, 256, 256))
    assert maps.objectness.shape == (2, 1, 32, 32)
    assert maps.offsets.shape == maps.sizes.shape == (2, 2, 32, 32)
    assert maps.kinds.shape == (2, 64, 32, 32)
    assert maps.hues.shape == (2, 6, 32, 32)
    assert maps.mask.shape == (2, 1, 128, 128)
    assert maps.styles.shape == (2, 3)
    assert maps.colours.shape == (2, 8)
    assert maps.features.shape == (2, net.feature_width)


def test_the_full_network_fits_its_budget() -> None:
    stored = sum(p.numel() * (2 if p.dim() > 1 else 4) for p in CheckerNet().state_dict().values())
    assert stored < 1.2e6


def test_a_picture_does_not_depend_on_its_batch(net: CheckerNet) -> None:
    checker = Checker(net, "none")
    images = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    # the order of a convolution's sums may differ with the batch
    alone, among = checker.features(images[1:2]), checker.features(images)[1:2]
    torch.testing.assert_close(among, alone, rtol=1e-4, atol=1e-5)
    assert checker.features(images).shape == (3, net.feature_width)
    assert checker.features(images.double()).dtype == torch.float32
    assert checker.foreground(images).shape == (3, 256, 256)
    assert checker.foreground(images).dtype == torch.bool
    assert len(checker.detect(images, least_score=0.0)) == 3


def test_no_pictures_at_all(net: CheckerNet) -> None:
    checker, none = Checker(net, "none"), torch.zeros(0, 3, 256, 256)
    assert checker.detect(none) == []
    assert checker.features(none).shape == (0, net.feature_width)
    assert checker.foreground(none).shape == (0, 256, 256)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 256, 256), torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 256, 256, dtype=torch.uint8)],
)
def test_pictures_of_another_form_are_refused(net: CheckerNet, images: torch.Tensor) -> None:
    for method in ("detect", "features", "foreground"):
        with pytest.raises(ValueError, match="floating-point pictures"):
            getattr(Checker(net, "none"), method)(images)
