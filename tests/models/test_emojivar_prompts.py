"""The prompt grammar and its vocabulary."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.emojivar import Prompt, PromptError, Vocabulary, parse
from examples.emojivar.prompt_sets import held_out_hue, held_out_pair, held_out_prompts, random_prompt
from examples.emojivar.prompts import TASKS, Background, encode
from examples.emojivar.vocabulary import COLOURABLE, KINDS, RELATIONS

VOCABULARY = Vocabulary()
LENGTH = 16


@settings(deadline=None)
@given(st.integers(0, 10**9), st.booleans())
def test_every_drawn_prompt_reads_back(seed: int, held_out: bool) -> None:
    prompt = random_prompt(random.Random(seed), held_out=held_out)
    assert parse(str(prompt)) == prompt
    ids = encode([prompt], VOCABULARY, LENGTH)[0]
    assert VOCABULARY.text(ids.tolist()) == str(prompt.canonical())


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        prompt = parse(text)
    except PromptError:
        return
    assert parse(str(prompt)) == prompt


@settings(deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY.words[1:]), max_size=16))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    try:
        prompt = parse(" ".join(words))
    except PromptError:
        return
    assert encode([prompt], VOCABULARY, LENGTH).shape == (1, LENGTH)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("An ice cream, on the noisy grey background.", "a icecream on a textured gray background"),
        ("the cat to the left of the tree", "a cat left of a tree"),
        ("a cat above a tree", "a cat above of a tree"),
        ("three butterflies", "three butterfly"),
        ("4 buses on white background", "four bus on a plain white background"),
        ("two cacti", "two cactus"),
        ("fish and grapes", "a fish and a grapes"),
        ("a red apple and green mugs", "a red apple and a green mug"),
        ("ONE red car on the plain pink background", "a red car on a plain pink background"),
    ],
)
def test_forgiven_wordings(said: str, meant: str) -> None:
    assert str(parse(said)) == meant


def test_meaning() -> None:
    assert parse("a blue hat and a red key on a gradient navy to teal background") == Prompt(
        "attribution", ("hat", "key"), ("blue", "red"), background=Background("gradient", ("navy", "teal"))
    )
    assert parse("four stars") == Prompt("count", ("star",), count=4)
    assert parse("a egg above of a gift") == Prompt("position", ("egg", "gift"), relation="above")


@pytest.mark.parametrize(
    ("said", "canonical"),
    [
        ("a egg below of a gift", "a gift above of a egg"),
        ("a egg right of a gift", "a gift left of a egg"),
        ("a egg above of a gift", "a egg above of a gift"),
        ("a egg left of a gift", "a egg left of a gift"),
        ("a blue hat and a red key", "a blue hat and a red key"),
        ("four star", "four star"),
    ],
)
def test_opposite_relations_are_one(said: str, canonical: str) -> None:
    assert str(parse(said).canonical()) == canonical
    assert torch.equal(encode([said], VOCABULARY, 16), encode([canonical], VOCABULARY, 16))
    assert str(parse(said)) == said


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a dogg", ["'dogg'", "vocabulary", "'dog'"]),
        ("a zebra on a plain white background", ["'zebra'", "it can draw", "cat"]),
        ("a red cat", ["'cat'", "one colour only", "apple"]),
        ("three red apples", ["never saw"]),
        ("a red apple and a cat", ["never saw"]),
        ("two cats and a dog", ["at word 3", "'and'", "write it like"]),
        ("", ["at word 1", "the end"]),
        ("a cat on a gradient pink background", ["'to'", "at word 7", "'background'"]),
        ("a cat left a dog", ["'of'", "at word 4"]),
        ("a cat to the above of a dog", ["left or right"]),
        ("a cat on a gradient pink to pink background", ["two different colours"]),
        ("<pad>", ["'<pad>'"]),
    ],
)
def test_refusals_say_what_and_why(prompt: str, parts: list[str]) -> None:
    with pytest.raises(PromptError) as caught:
        parse(prompt)
    for part in parts:
        assert part in str(caught.value)


def test_a_prompt_must_be_text() -> None:
    with pytest.raises(PromptError, match="requires a str, got int"):
        VOCABULARY.normalise(3)  # type: ignore[arg-type]


def test_ids_follow_the_released_weights() -> None:
    assert len(VOCABULARY) == 94
    ids = {"<pad>": 0, "a": 1, "textured": 7, "two": 10, "red": 17, "white": 22, "cat": 30, "house": 93}
    assert {word: VOCABULARY.id(word) for word in ids} == ids


def test_held_out_prompts_are_never_drawn_for_training() -> None:
    held_out = held_out_prompts(60, seed=1)
    assert held_out == held_out_prompts(60, seed=1)
    assert held_out != held_out_prompts(60, seed=2)
    assert len(set(held_out)) == 60
    assert {prompt.task for prompt in held_out} == set(TASKS)
    rng = random.Random(0)
    for prompt in (random_prompt(rng) for _ in range(3000)):
        if prompt.task in ("two", "position"):
            assert not held_out_pair(*prompt.canonical().kinds)
        if prompt.hues:
            assert not held_out_hue(prompt.kinds[0], prompt.hues[0])
            assert set(prompt.kinds) <= set(COLOURABLE)


def test_held_out_prompts_of_one_task() -> None:
    positions = held_out_prompts(40, task="position")
    assert all(held_out_pair(*prompt.canonical().kinds) for prompt in positions)
    assert {prompt.relation for prompt in positions} == set(RELATIONS)
    assert all(held_out_hue(p.kinds[0], p.hues[0]) for p in held_out_prompts(5, task="colour"))


def test_no_kind_has_two_names() -> None:
    assert len(set(VOCABULARY.words)) == len(VOCABULARY)
    assert len(KINDS) == 64
