"""Draws random programs: blocks that must be rewritten, and near misses that hide one hard part each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from tests.property import attentions
from tests.property.cross_attentions import CROSS
from tests.property.ops import OPS, names
from tests.property.programs import (
    CACHES,
    EXTRAS,
    HARD_CACHES,
    HARD_EXTRAS,
    HEAD_OPS,
    HEAD_WIDTH,
    PROJECTIONS,
    Block,
    Shape,
    Step,
)
from tests.property.tables import LAYOUTS, SOURCES, Table

MIXING = "mixing"
UNSURE = "unsure"

# On both sides of the widths of vector loops (4 and 8 float64), and all of a table of 40 rows at most.
OTHER_SIZES = (2, 3, 4, 5, 7, 8, 9, 16, 17)
EVEN_SIZES = (2, 4, 6)


@dataclass(frozen=True)
class Case:
    """A program with its sizes and how it is captured.

    Attributes:
        hard: what the planted hard part does to tokens ("" where none was planted).
        dynamic_batch, dynamic_text: whether those sizes are symbolic, too.
        duck: whether equal sizes share one symbol, as under Dynamo.
    """

    blocks: tuple[Block, ...]
    shape: Shape
    hard: str = ""
    dynamic_batch: bool = False
    dynamic_text: bool = False
    duck: bool = False


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Small sizes that often coincide: N with B, H, the cache or the text."""
    heads = draw(st.sampled_from([1, 2, 2, 4]))
    tokens = draw(st.sampled_from([2, 3, 4, 5, 6]))
    return Shape(
        batch=draw(st.sampled_from([1, 2, 2, 3, 4])),
        tokens=tokens,
        cached=draw(st.sampled_from([0, 3, 5, tokens])),
        heads=heads,
        kv_heads=heads,
        text=draw(st.sampled_from([3, tokens])),
    )


@st.composite
def tables(draw: st.DrawFn, place: str, width: int) -> Table:
    layout = draw(st.sampled_from(LAYOUTS[place]))
    return Table(draw(st.sampled_from(SOURCES)), layout, width if "d" in layout else 1)


@st.composite
def steps(draw: st.DrawFn, width: int) -> tuple[Step, ...]:
    chosen = draw(st.lists(st.sampled_from(names("tokenwise")), max_size=1))
    return tuple(_step(draw, name, width) for name in chosen)


def sometimes(values: Sequence[str], plain: str) -> st.SearchStrategy[str]:
    """Mostly the plain form: a large program costs seconds to capture, and has many forms in it anyway."""
    return st.sampled_from((*[plain] * (2 * len(values)), *values))


@st.composite
def blocks(draw: st.DrawFn, shape: Shape) -> Block:
    """A block that must be rewritten."""
    projection = draw(sometimes(PROJECTIONS, "packed"))
    head_op, out_op = draw(sometimes(HEAD_OPS, "none")), draw(sometimes(HEAD_OPS, "none"))
    cross = draw(sometimes(tuple(CROSS), "none"))
    packed = projection in ("packed", "stacked", "permuted") and shape.kv_heads == shape.heads
    packed_table = packed and draw(st.integers(0, 5)) == 0
    return Block(
        before=draw(steps(shape.width)),
        projection=projection,
        packed_table=draw(tables("packed", HEAD_WIDTH)) if packed_table else None,
        head_op=head_op,
        head_table=_head_table(draw, head_op, shape),
        cache=draw(st.sampled_from(CACHES)),
        attention=draw(st.sampled_from(_fitting(shape))),
        out_op=out_op,
        out_table=_head_table(draw, out_op, shape),
        after=draw(steps(shape.width)),
        cross=cross,
        cross_table=draw(tables("stream", 1)) if "mask" in cross else None,
        extra=draw(sometimes(EXTRAS, "none")),
    )


@st.composite
def good_cases(draw: st.DrawFn) -> Case:
    """Programs that must be rewritten."""
    shape = draw(shapes())
    if shape.heads > 1 and draw(st.sampled_from([False, False, False, True])):
        shape = replace(shape, kv_heads=1)
    chosen = [draw(blocks(shape))]
    if draw(st.sampled_from([False] * 19 + [True])):
        chosen.append(draw(blocks(shape)))
    batch = shape.batch > 1 and draw(st.sampled_from([False, False, True]))
    return Case(
        tuple(replace(block, cross_table=_mask_table(block)) for block in chosen),
        shape,
        dynamic_batch=batch,
        dynamic_text=draw(st.booleans()),
        duck=draw(st.booleans()),
    )


@st.composite
def other_shapes(draw: st.DrawFn, case: Case) -> Shape:
    """Sizes that a program's graph may meet later; sizes that share a symbol stay equal.

    A program that makes a table for each sample is for the number of samples that it was written for.
    """
    drawn: dict[object, int] = {}

    def size(name: str, old: int, choices: Sequence[int] = OTHER_SIZES) -> int:
        key = old if case.duck else name
        if key not in drawn:
            drawn[key] = draw(st.sampled_from(choices), label=name)
        return drawn[key]

    shape = case.shape
    per_sample = any("b" in table.layout for block in case.blocks for table in block.tables())
    any_batch = case.dynamic_batch and not per_sample
    return replace(
        shape,
        batch=size("batch", shape.batch, EVEN_SIZES) if any_batch else shape.batch,
        tokens=size("tokens", shape.tokens),
        cached=size("cached", shape.cached) if shape.cached else 0,
        text=size("text", shape.text) if case.dynamic_text else shape.text,
    )


def rows_per_sample(case: Case) -> st.SearchStrategy[int | None]:
    """Rows that share an index that the graph's own gate chooses, 2 as under guidance; None: no gate."""
    return st.sampled_from([None, 1, 2] if case.shape.batch % 2 == 0 else [None, 1])


@st.composite
def hard_cases(draw: st.DrawFn) -> Case:
    """Programs with one hard part: tokens mixed, or a form that may be too much for the passes."""
    case = draw(good_cases())
    shape = replace(case.shape, kv_heads=case.shape.heads)
    first = draw(blocks(shape))
    where = draw(st.sampled_from(["before", "after", "attention", "extra", "cache"]))
    if where == "attention":
        name = draw(st.sampled_from(sorted({**attentions.MIXING, **attentions.UNSURE})))
        kind = MIXING if name in attentions.MIXING else UNSURE
        first = replace(first, attention=name)
    elif where == "extra":
        name = draw(st.sampled_from(HARD_EXTRAS))
        kind = MIXING
        first = replace(first, extra=name, cache="heads", projection="packed")
    elif where == "cache":
        shape = replace(shape, cached=max(shape.cached, 2))
        kind = MIXING
        first = replace(first, cache=draw(st.sampled_from(HARD_CACHES)))
    else:
        name = draw(st.sampled_from(names("mixing") + names("unsure")))
        kind = OPS[name].kind
        around = tuple(getattr(first, where))
        first = replace(first, **{where: (*around, Step(name))})
    first = replace(first, cross_table=_mask_table(first))
    return replace(case, blocks=(first,), shape=shape, hard=kind)


def _step(draw: st.DrawFn, name: str, width: int) -> Step:
    return Step(name, draw(tables("stream", width)) if OPS[name].table else None)


def _head_table(draw: st.DrawFn, head_op: str, shape: Shape) -> Table | None:
    if head_op == "sequence_table":
        table = draw(tables("tokens", HEAD_WIDTH))
    elif head_op in ("table", "rope"):
        table = draw(tables("heads", HEAD_WIDTH))
    else:
        return None
    if "h" in table.layout and shape.kv_heads != shape.heads:
        return replace(table, layout="nd" if head_op != "sequence_table" else "n1d", width=HEAD_WIDTH)
    return table


def _fitting(shape: Shape) -> list[str]:
    return sorted(attentions.SUPPORTED if shape.kv_heads == shape.heads else attentions.GROUPED)


def _mask_table(block: Block) -> Table | None:
    """A mask's table is [N, 1]: the mask makes its own key dimension."""
    if block.cross_table is None:
        return None
    return replace(block.cross_table, layout="n1", width=1)
