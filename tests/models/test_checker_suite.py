"""The evaluation suite: what it offers to whoever measures the model."""

from __future__ import annotations

import pytest
import torch

from examples.emojivar import PromptError, parse, suite
from examples.emojivar.atlas import Atlas
from examples.emojivar.checker import Checker
from examples.emojivar.checker.geneval import Thresholds
from examples.emojivar.checker.net import SMOKE, CheckerNet
from examples.emojivar.prompt_sets import (
    held_out_hue,
    held_out_pair,
    held_out_prompts,
    most_of_a_task,
)
from examples.emojivar.prompts import TASKS
from examples.emojivar.suite import EmojiSuite


@pytest.fixture(scope="module")
def checker() -> Checker:
    """Random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Checker(CheckerNet(SMOKE), "weights")


@pytest.fixture(scope="module")
def judge(checker: Checker, atlas: Atlas) -> EmojiSuite:
    return EmojiSuite(checker, atlas)


def test_prompts_are_held_out_and_the_tasks_in_turn(judge: EmojiSuite) -> None:
    prompts = judge.prompts(60, seed=4)
    assert len(set(prompts)) == 60
    parsed = [parse(prompt) for prompt in prompts]
    assert [prompt.task for prompt in parsed] == list(TASKS) * 10
    for prompt in parsed:
        if prompt.hues:
            assert held_out_hue(prompt.kinds[0], prompt.hues[0])
        elif len(prompt.kinds) == 2:
            assert held_out_pair(*prompt.canonical().kinds)
    assert judge.prompts(60, seed=4) == prompts
    assert judge.prompts(60, seed=5) != prompts


def test_there_are_only_so_many_prompts(judge: EmojiSuite) -> None:
    most = len(TASKS) * most_of_a_task()
    assert most > 1000
    with pytest.raises(ValueError, match=f"0 to {most} different prompts"):
        judge.prompts(most + 1, seed=0)
    with pytest.raises(ValueError, match=f"0 to {most_of_a_task()} different prompts of colour"):
        held_out_prompts(most_of_a_task() + 1, task="colour")
    assert judge.prompts(0, seed=0) == []


def test_a_true_scene_depends_on_its_prompt_and_seed_alone(judge: EmojiSuite) -> None:
    prompts = ["a cat on a plain teal background", "two dogs", "a red mug"]
    images = judge.true_images(prompts, seed=7)
    assert images.shape == (3, 3, 256, 256)
    assert images.dtype == torch.float32
    assert torch.equal(judge.true_images(prompts[1:2], seed=8), images[1:2])
    assert not torch.equal(judge.true_images(prompts[1:2], seed=9), images[1:2])
    with pytest.raises(PromptError, match="wug"):
        judge.true_images(["a wug"], seed=0)


def test_it_judges_pictures(judge: EmojiSuite, checker: Checker) -> None:
    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    verdicts = judge.score(["a cat", "two dogs"], images)
    assert [verdict.task for verdict in verdicts] == ["single", "count"]
    assert all(isinstance(correct, bool) and isinstance(reason, str) for _, correct, reason in verdicts)
    assert judge.features(images).shape == (2, checker.net.feature_width)
    assert judge.foreground(images).shape == (2, 256, 256)
    assert judge.foreground(images).dtype == torch.bool


def test_the_fingerprint_follows_what_scores_depend_on(
    judge: EmojiSuite, checker: Checker, atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EmojiSuite(checker, atlas).fingerprint == judge.fingerprint
    assert EmojiSuite(Checker(checker.net, "others"), atlas).fingerprint != judge.fingerprint
    monkeypatch.setattr(suite, "Thresholds", lambda: Thresholds(counting_score=0.8))
    assert EmojiSuite(checker, atlas).fingerprint != judge.fingerprint
