"""CUDA graphs of functions, by what Inductor records its own with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._inductor.compile_fx import cudagraphify

Recorded = Callable[[list[Tensor]], Sequence[Tensor]]

_SETTING = "triton.cudagraphs"


def without_cuda_graphs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Inductor's settings, but that each kernel is launched."""
    return {name: value for name, value in settings.items() if name != _SETTING}


def record_cuda_graph(
    function: Recorded, fixed: Sequence[int], outputs: int, device: torch.device
) -> Recorded:
    """``function`` as a node of Inductor's tree of CUDA graphs.

    Its first run warms up, its second records, later ones replay. What it returns is overwritten in the next
    step (``torch.compiler.cudagraph_mark_step_begin``). Inductor checks before a replay that what was freed
    when it recorded is freed again, copies inputs that moved, and records anew where ``fixed`` ones did.

    Args:
        function: empties the list that it is given, and returns tensors.
        fixed: positions of the inputs that stay where they are.
        outputs: how many tensors it returns.
        device: where all of them are.
    """
    recorded = cudagraphify(
        function,
        fixed,
        device_index=device.index,
        stack_traces=[None] * outputs,
        is_backward=False,
        is_inference=True,
    )
    return cast(Recorded, recorded)
