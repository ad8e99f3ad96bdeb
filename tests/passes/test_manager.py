"""Passes run in order, each verified, timed and dumped; a change of any changes the manager's key."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import fx

from tests.passes.toy_block import Block, captured, make_inputs
from toprovar_compiler.errors import GraphVerificationError, UnsupportedGraphError
from toprovar_compiler.passes import manager
from toprovar_compiler.passes.base import GraphPass, source_uuid
from toprovar_compiler.passes.drop_assertions import DropAssertions
from toprovar_compiler.passes.fuse_entropy import FuseEntropy
from toprovar_compiler.passes.graph_tools import clone
from toprovar_compiler.passes.insert_gate import InsertGate
from toprovar_compiler.passes.manager import DUMP_VARIABLE, PassManager, PassResult
from toprovar_compiler.passes.match_attention import MatchAttention
from toprovar_compiler.passes.prune_tokens import PruneTokens

ALL = (DropAssertions(), MatchAttention(), PruneTokens(), FuseEntropy(), InsertGate(1))


def _graph() -> fx.GraphModule:
    graph = fx.Graph()
    y = graph.call_function(torch.ops.aten.relu.default, (graph.placeholder("x"),))
    graph.output((y,))
    return fx.GraphModule(torch.nn.Module(), graph)


@dataclass
class Adds:
    """Puts ``number`` ops in front of the output; ``then`` may do what a pass must not do."""

    name: str
    number: int = 0
    then: Callable[[fx.Graph], object] = lambda graph: None
    saw: list[int] = field(default_factory=list)

    def uuid(self) -> str:
        return source_uuid(self, self.name, self.number)

    def __call__(self, gm: fx.GraphModule) -> int:
        self.saw.append(len(gm.graph.nodes))
        (last,) = gm.graph.output_node().args[0]
        with gm.graph.inserting_before(gm.graph.output_node()):
            for _ in range(self.number):
                last = gm.graph.call_function(torch.ops.aten.neg.default, (last,))
        gm.graph.output_node().args = ((last,),)
        self.then(gm.graph)
        return self.number


def _late_input(graph: fx.Graph) -> None:
    with graph.inserting_before(graph.output_node()):
        graph.placeholder("late")


def _refuse(graph: fx.Graph) -> None:
    raise UnsupportedGraphError("not today")


def test_passes_run_in_order_on_what_the_last_one_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.accumulate(itertools.count(1), lambda now, step: now + step)
    monkeypatch.setattr(manager, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    gm = _graph()
    results = PassManager((Adds("one", 1), Adds("none"), Adds("two", 2)), "label")(gm)
    assert results == (
        PassResult("one", rewrites=1, seconds=2.0, ops_before=3, ops_after=4),
        PassResult("none", rewrites=0, seconds=4.0, ops_before=4, ops_after=4),
        PassResult("two", rewrites=2, seconds=6.0, ops_before=4, ops_after=6),
    )
    assert gm.code.count("neg") >= 3, "the module's code is the graph's"
    assert torch.equal(gm(torch.ones(2))[0], -torch.ones(2))


def test_no_passes_change_nothing() -> None:
    gm = _graph()
    before = gm.code
    assert PassManager((), "label")(gm) == ()
    assert gm.code == before


def test_each_pass_is_verified_before_the_next_one_runs() -> None:
    breaks, later = Adds("breaks", 1, _late_input), Adds("later")
    with pytest.raises(GraphVerificationError, match="pass 'breaks' left placeholder 'late'"):
        PassManager((Adds("sound"), breaks, later), "label")(_graph())
    assert breaks.saw
    assert not later.saw


def test_a_refusal_ends_the_run() -> None:
    later = Adds("later")
    with pytest.raises(UnsupportedGraphError, match="not today"):
        PassManager((Adds("refuses", then=_refuse), later), "label")(_graph())
    assert not later.saw


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DUMP_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    PassManager((Adds("one", 1),), "label")(_graph())
    assert list(tmp_path.iterdir()) == []


def test_graphs_are_dumped_before_the_first_and_after_each_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "_dump_numbers", itertools.count(7))
    folder = tmp_path / "made" / "here"
    monkeypatch.setenv(DUMP_VARIABLE, str(folder))
    PassManager((Adds("one", 1), Adds("two", 2)), "block")(_graph())
    PassManager((Adds("last"),), "other")(_graph())
    written = sorted(folder.iterdir())
    assert [path.name for path in written] == [
        "0007-block-captured.py",
        "0008-block-one.py",
        "0009-block-two.py",
        "0010-other-captured.py",
        "0011-other-last.py",
    ]
    texts = [path.read_text() for path in written]
    assert [text.count("aten.neg.default") for text in texts] == [0, 1, 3, 0, 0]
    for text in texts:
        ast.parse(text)


def test_the_dump_of_a_run_that_ended_early_has_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DUMP_VARIABLE, str(tmp_path))
    with pytest.raises(UnsupportedGraphError):
        PassManager((Adds("one", 1), Adds("refuses", then=_refuse)), "block")(_graph())
    stages = [path.stem.split("-", 1)[1] for path in sorted(tmp_path.iterdir())]
    assert stages == ["block-captured", "block-one"]


def test_a_captured_block_dumps_as_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the annotations of its fake values, which the small graphs above do not have."""
    gm = clone(captured(Block(), make_inputs()))
    monkeypatch.setenv(DUMP_VARIABLE, str(tmp_path))
    PassManager(ALL, "block")(gm)
    written = sorted(tmp_path.iterdir())
    assert len(written) == 1 + len(ALL)
    for path in written:
        ast.parse(path.read_text())
    assert "toprovar.entropy_gate" in written[-1].read_text()


@pytest.mark.parametrize("graph_pass", ALL, ids=lambda p: p.name)
def test_every_pass_is_one(graph_pass: GraphPass) -> None:
    assert isinstance(graph_pass, GraphPass)
    assert graph_pass.uuid() == type(graph_pass)(*_settings(graph_pass)).uuid(), "the same in another process"


def _settings(graph_pass: GraphPass) -> tuple[object, ...]:
    return tuple(vars(graph_pass).values())


def test_names_are_unique() -> None:
    names = [p.name for p in (*ALL, PruneTokens("computed"))]
    assert len(set(names)) == len(names)


def test_keys_tell_passes_settings_and_order_apart() -> None:
    tuples = [
        (),
        (PruneTokens(),),
        (PruneTokens("computed"),),
        (PruneTokens(), InsertGate(1)),
        (PruneTokens(), InsertGate(2)),
        (InsertGate(1), PruneTokens()),
        (PruneTokens(), FuseEntropy()),
        (PruneTokens(), FuseEntropy(), FuseEntropy()),
        (FuseEntropy(),),
        (DropAssertions(),),
        (MatchAttention(),),
    ]
    keys = [PassManager(passes, "label").uuid() for passes in tuples]
    assert len(set(keys)) == len(keys)
    assert keys == [PassManager(passes, "another label").uuid() for passes in tuples]


def test_a_changed_source_changes_the_key() -> None:
    class Renamed(FuseEntropy):
        name = "fuse-entropy"

    assert Renamed().uuid() != FuseEntropy().uuid()
