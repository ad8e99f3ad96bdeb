"""Finding the repeated blocks, and the schedule that a model states."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from torch import nn

from tests.toy_generators import ClassVAR, TextVAR, make
from toprovar_compiler.blocks import find_blocks
from toprovar_compiler.errors import UnsupportedModelError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Step
from toprovar_compiler.policies.budget import Budget
from toprovar_compiler.schedule import grid_of, stated_schedule


def _holder(**attributes: object) -> nn.Module:
    model = nn.Module()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def _block(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Linear(width, width))


def test_blocks_are_found_in_order() -> None:
    model = make(ClassVAR)
    assert find_blocks(model) == list(model.blocks)


def test_the_largest_list_wins_over_a_longer_text_encoder() -> None:
    model = make(TextVAR)
    assert len(model.text_blocks) > len(model.layers)
    assert find_blocks(model) == list(model.layers)


def test_a_named_list_wins_over_the_largest() -> None:
    model = make(TextVAR)
    assert find_blocks(model, "text_blocks") == list(model.text_blocks)


def test_blocks_deep_inside_a_pipeline_are_found() -> None:
    inner = make(ClassVAR)
    assert find_blocks(_holder(pipeline=_holder(transformer=inner))) == list(inner.blocks)


@pytest.mark.parametrize(
    "children",
    [[_block()], [_block(), nn.Linear(4, 4)], [nn.Linear(4, 4), nn.Linear(4, 4)], []],
    ids=["one block", "unlike children", "no projections", "empty"],
)
def test_lists_that_are_no_repeated_blocks_are_refused(children: list[nn.Module]) -> None:
    with pytest.raises(UnsupportedModelError, match="requires a list of at least 2 like transformer blocks"):
        find_blocks(_holder(items=nn.ModuleList(children)))


def test_a_wrong_path_lists_the_lists_of_the_model() -> None:
    with pytest.raises(UnsupportedModelError, match=r"blocks='layer'.*text_blocks.*layers"):
        find_blocks(make(TextVAR), "layer")


def test_a_path_to_something_that_is_no_list_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="blocks='head' requires a list of modules, got Linear"):
        find_blocks(make(TextVAR), "head")


def test_schedule_counts_the_tokens_of_each_scale() -> None:
    assert stated_schedule(make(ClassVAR, patch_nums=(1, 2, 5))) == (1, 4, 25)


@pytest.mark.parametrize("sides", [(), "123", (1, 2.0), (1, 0), [(1, 2, 2)], None, 3])
def test_what_is_no_list_of_sides_is_no_schedule(sides: object) -> None:
    assert stated_schedule(_holder(patch_nums=sides)) is None


def test_a_model_without_the_attribute_states_no_schedule() -> None:
    assert stated_schedule(make(TextVAR)) is None


def test_the_last_three_stated_scales_are_due_by_default() -> None:
    schedule = (1, 4, 9, 16, 36)
    assert _due(schedule, enumerate(schedule)) == [False, False, True, True, True]


def test_without_schedule_scales_of_256_tokens_and_more_are_due() -> None:
    assert _due(None, [(0, 255), (0, 256), (0, 1024)]) == [False, True, True]


def _due(schedule: tuple[int, ...] | None, scales: Iterable[tuple[int, int]]) -> list[bool]:
    budget = Budget(Options(), schedule)
    return [budget.is_due(Step(scale, 0, tokens, 0, 1, 1)) for scale, tokens in scales]


@pytest.mark.parametrize(("tokens", "grid"), [(1, (1, 1)), (36, (6, 6)), (35, None), (2, None)])
def test_grids_are_square_or_unknown(tokens: int, grid: tuple[int, int] | None) -> None:
    assert grid_of(tokens) == grid


def _chunk(*blocks: nn.Module) -> nn.Module:
    return _holder(module=nn.ModuleList(blocks))


@pytest.mark.parametrize("sizes", [(2, 2), (1, 1, 1)], ids=["of two", "of one"])
def test_blocks_in_chunks_are_found_one_by_one(sizes: tuple[int, ...]) -> None:
    chunks = [[_block() for _ in range(size)] for size in sizes]
    model = _holder(block_chunks=nn.ModuleList(_chunk(*blocks) for blocks in chunks))
    assert find_blocks(model) == [block for blocks in chunks for block in blocks]


def test_a_block_that_holds_more_than_a_list_is_no_chunk() -> None:
    blocks = [_holder(parts=nn.ModuleList([_block(), _block()]), out=nn.Linear(4, 4)) for _ in range(2)]
    assert find_blocks(_holder(blocks=nn.ModuleList(blocks))) == blocks


def test_chunks_of_unlike_blocks_stay_whole() -> None:
    chunks = [_chunk(_block(), _block()), _chunk(make(ClassVAR).blocks[0])]
    assert find_blocks(_holder(chunks=nn.ModuleList(chunks))) == chunks
