"""Random prompts for training, and the held-out ones that training never draws."""

from __future__ import annotations

import random

from .prompts import GRADIENT, TASKS, Background, Prompt
from .vocabulary import BACKGROUND_COLOURS, COLOURABLE, COUNTS, HUES, KINDS, RELATIONS, STYLES

# the harder the task, the more often it is shown
TASK_SHARES = {"single": 9, "two": 17, "count": 17, "colour": 9, "position": 24, "attribution": 24}
STYLE_SHARES = {"plain": 43, "gradient": 35, "textured": 22}
EQUAL_HUES = 0.1  # how often two things have one hue, which shows nothing about telling them apart
BACKGROUND_SAID = 0.7  # how often a training prompt mentions the background
HELD_OUT_PAIRS = 17  # one ordered pair of kinds in this many is held out
HELD_OUT_HUES = 13


def held_out_pair(first: str, second: str) -> bool:
    """Whether training never shows the two kinds as "first and second", nor the first left of or above."""
    return (KINDS.index(first) * 7 + KINDS.index(second) * 3) % HELD_OUT_PAIRS == 0


def held_out_hue(kind: str, hue: str) -> bool:
    """Whether training never shows this kind in this hue, alone or as the first of two."""
    return (KINDS.index(kind) * 5 + HUES.index(hue) * 3) % HELD_OUT_HUES == 0


def random_prompt(rng: random.Random, *, held_out: bool = False, task: str | None = None) -> Prompt:
    """A prompt of the training set or, with ``held_out``, of a combination that training never shows.

    Singles and counts have no combination to hold out: for these, the two sets are the same.

    Args:
        rng: the only source of randomness.
        held_out: which set to draw from; a held-out prompt always mentions its background.
        task: one of :data:`~examples.emojivar.prompts.TASKS`; by default drawn by :data:`TASK_SHARES`.
    """
    task = task or rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()))[0]
    background = random_background(rng) if held_out or rng.random() < BACKGROUND_SAID else None
    while True:  # both sets are large; a few draws find a member
        prompt = _scene(rng, task, background)
        if not _can_be_held_out(prompt) or _is_held_out(prompt) == held_out:
            return prompt


def most_of_a_task() -> int:
    """How many different held-out prompts every task has; "colour" has the fewest."""
    coloured = sum(held_out_hue(kind, hue) for kind in COLOURABLE for hue in HUES)
    colours = len(BACKGROUND_COLOURS)
    return coloured * sum(colours * (colours - 1) if style == GRADIENT else colours for style in STYLES)


def held_out_prompts(count: int, seed: int = 0, task: str | None = None) -> list[Prompt]:
    """``count`` different held-out prompts, the six tasks in turn or all of ``task``; the seed decides.

    Raises:
        ValueError: there are not so many.
    """
    most = most_of_a_task() * (1 if task else len(TASKS))
    if not 0 <= count <= most:
        raise ValueError(
            f"held_out_prompts requires 0 to {most} different prompts of {task or 'all tasks in turn'}, got "
            f"{count}; ask for fewer, and for more samples of each"
        )
    rng = random.Random(seed)
    found: dict[Prompt, None] = {}
    while len(found) < count:
        found.setdefault(random_prompt(rng, held_out=True, task=task or TASKS[len(found) % len(TASKS)]))
    return list(found)


def random_background(rng: random.Random) -> Background:
    """A background of a random style and colours."""
    style = rng.choices(list(STYLE_SHARES), list(STYLE_SHARES.values()))[0]
    colours = rng.sample(list(BACKGROUND_COLOURS), 2 if style == GRADIENT else 1)
    return Background(style, tuple(colours))


def _scene(rng: random.Random, task: str, background: Background | None) -> Prompt:
    coloured = task in ("colour", "attribution")
    objects = 2 if task in ("two", "position", "attribution") else 1
    kinds = tuple(rng.sample(COLOURABLE if coloured else KINDS, objects))
    hues = _hues(rng, objects) if coloured else ()
    count = rng.choice(list(COUNTS.values())) if task == "count" else 1
    relation = rng.choice(RELATIONS) if task == "position" else None
    return Prompt(task, kinds, hues, count, relation, background)


def _hues(rng: random.Random, objects: int) -> tuple[str, ...]:
    if rng.random() < EQUAL_HUES:
        return (rng.choice(HUES),) * objects
    return tuple(rng.sample(HUES, objects))


def _can_be_held_out(prompt: Prompt) -> bool:
    return prompt.task not in ("single", "count")


def _is_held_out(prompt: Prompt) -> bool:
    if prompt.hues:
        return held_out_hue(prompt.kinds[0], prompt.hues[0])
    return held_out_pair(*prompt.canonical().kinds)
