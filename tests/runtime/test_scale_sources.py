"""Where the arguments of block calls come from and their results go, beyond what the next block gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.runtime.recorder import Recorder
from tests.toy_generators import AdaBlock, CachedAttention, ClassVAR, make

SCALES = 5
VIEW = (
    "CUDA graphs are recorded for each block call, not for each scale: a block returns a view of what it is "
    "given"
)


class RememberingAttention(CachedAttention):
    """Keeps what the first scale made for all others, as a cache of the prompt's keys is kept."""

    def kv_caching(self, enable: bool) -> None:
        super().kv_caching(enable)
        self.memory: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.memory is None:
            self.memory = self.proj(x.mean(1, keepdim=True))
        attended: Tensor = super().forward(x)
        return attended + self.memory


class RememberingBlock(AdaBlock):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.attn = RememberingAttention(width, heads)


class PassingBlock(AdaBlock):
    """Moves what it is given to where it is already, and keeps that."""

    seen: Tensor | None = None

    def forward(self, x: Tensor, cond_BD: Tensor) -> Tensor:
        self.seen = cond_BD.to(x.device)
        return super().forward(x, self.seen)


class CuttingBlock(AdaBlock):
    """Keeps a view of what it is given."""

    seen: Tensor | None = None

    def forward(self, x: Tensor, cond_BD: Tensor) -> Tensor:
        self.seen = cond_BD[:1]
        return super().forward(x, cond_BD)


class RememberingVAR(ClassVAR):
    block_type = RememberingBlock


class PassingVAR(ClassVAR):
    block_type = PassingBlock


class CuttingVAR(ClassVAR):
    block_type = CuttingBlock


def _replayed(kind: type[ClassVAR], labels: Tensor, recorder: Recorder) -> Any:
    """A compiled model after generations enough, each of which was compared with an eager one."""
    torch._dynamo.reset()
    toprovar_compiler.reset()
    eager, model = make(kind), make(kind)
    made = toprovar_compiler.compile(model, mode="reduce-overhead", policy="dense")
    for _ in range(7):
        recorder.runs = 0
        wanted = eager.autoregressive_infer_cfg(labels)
        torch.testing.assert_close(made.autoregressive_infer_cfg(labels), wanted)
    return made


@pytest.mark.parametrize("kind", [RememberingVAR, PassingVAR])
def test_each_scale_is_run_at_once(kind: type[ClassVAR], labels: Tensor, recorder: Recorder) -> None:
    made = _replayed(kind, labels, recorder)
    assert recorder.runs == SCALES
    assert toprovar_compiler.summary(made).to_dict()["fallbacks"] == {}


def test_what_a_block_passes_on_is_what_it_was_given(labels: Tensor, recorder: Recorder) -> None:
    """Not a tensor of the graph's, which the next step overwrites."""
    made = _replayed(PassingVAR, labels, recorder)
    graphs = {result.data_ptr() for node in recorder.nodes.values() for result in node.results}
    assert graphs
    for block in made.blocks:
        assert block.seen.data_ptr() not in graphs
        assert block.seen.data_ptr() == made.blocks[0].seen.data_ptr()


@pytest.mark.filterwarnings("ignore:toprovar")
def test_a_view_of_what_a_block_was_given_is_no_part_of_a_graph(labels: Tensor, recorder: Recorder) -> None:
    made = _replayed(CuttingVAR, labels, recorder)
    assert recorder.runs == 0
    assert toprovar_compiler.summary(made).to_dict()["fallbacks"].keys() == {VIEW}
