"""mode="reduce-overhead" on a GPU: CUDA graphs paint what single launches paint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

import toprovar_compiler
from benchmarks.model_shapes import random_model
from benchmarks.variant_timing import twin
from examples.emojivar.config import Config
from toprovar_compiler.evaluation.reproducible import reproducible
from toprovar_compiler.session import Session

pytestmark = pytest.mark.gpu

CONFIG = Config((1, 2, 4, 6, 8), width=128, depth=3, heads=2, codes=64, tokenizer_widths=(16, 24, 32))
PROMPTS = ("a rocket on a plain navy background", "three apple on a plain teal background")


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """Twins, one for each mode, so that all options share what is compiled in it."""
    model = random_model(CONFIG, "cuda", torch.bfloat16)
    return model, twin(model)


@pytest.fixture(autouse=True)
def _same_kernels() -> Iterator[None]:
    """Inductor times several forms of a reduction and takes the fastest; they round apart."""
    with reproducible():
        yield


def _paint(model: Any, batches: Sequence[Sequence[str]], **options: Any) -> list[Tensor]:
    """The batches after each other; all pictures are held until the end."""
    made = toprovar_compiler.compile(model, **options)
    with torch.inference_mode():
        return [made.generate(list(prompts), seed=seed) for seed, prompts in enumerate(batches)]


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"keep_ratio": 0.3}, [PROMPTS[:1], PROMPTS[1:]] * 3),
        ({"keep_ratio": 0.3, "guidance_until": 3}, [PROMPTS] * 6),
        ({"policy": "fixed-exit", "start_scale": 4}, [PROMPTS[:1], PROMPTS[1:]] * 3),
        ({"policy": "fastvar", "keep_ratio": 0.3}, [PROMPTS[:1], PROMPTS[1:]] * 3),
        ({"policy": "dense"}, [PROMPTS[:1], PROMPTS] * 5),
    ],
    ids=["toprovar", "guidance ends", "fixed-exit", "fastvar", "dense, batches of one and two"],
)
def test_graphs_paint_what_launches_paint(
    models: tuple[Any, Any], options: dict[str, Any], batches: Sequence[Sequence[str]]
) -> None:
    before = counters["inductor"]["cudagraph_skips"]
    launched = _paint(models[0], batches, **options)
    recorded = _paint(models[1], batches, mode="reduce-overhead", **options)
    assert all(map(torch.equal, launched, recorded))
    assert counters["inductor"]["cudagraph_skips"] == before
    for_each_call = [reason for reason in _fallbacks(models[1]) if "for each block call" in reason]
    # FastVAR chooses tokens anew in each block, by what the block is given.
    assert len(for_each_call) == (options.get("policy") == "fastvar")


@pytest.mark.parametrize("guard", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("options", [{"policy": "dense"}, {"keep_ratio": 0.3}], ids=["dense", "pruned"])
def test_a_whole_scale_is_one_launch_and_is_recorded_once(
    models: tuple[Any, Any], options: dict[str, Any], guard: Callable[[], AbstractContextManager[Any]]
) -> None:
    made = toprovar_compiler.compile(models[1], mode="reduce-overhead", **options)
    with guard():
        for seed in range(7):
            made.generate(list(PROMPTS[:1]), seed=seed)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            picture = made.generate(list(PROMPTS[:1]), seed=7)
    calls = Counter({event.key: event.count for event in trace.key_averages()})
    assert picture.isfinite().all()
    assert calls["cudaGraphLaunch"] == len(CONFIG.patch_nums)
    assert calls["cudaStreamBeginCapture"] == 0


@pytest.mark.parametrize("options", [{}, {"guidance_until": 3}], ids=["pruned", "guidance ends"])
def test_decisions_never_wait_for_the_gpu(
    models: tuple[Any, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the host waits it launches nothing, and the GPU is idle once it has caught up."""
    made = toprovar_compiler.compile(models[1], mode="reduce-overhead", keep_ratio=0.3, **options)
    with torch.inference_mode():
        for seed in range(5):
            made.generate(list(PROMPTS), seed=seed)
        for name in ("enter", "decide", "leave", "see_codes", "exits_before"):
            monkeypatch.setattr(Session, name, _refusing_to_wait(getattr(Session, name)))
        made.generate(list(PROMPTS), seed=9)


def _refusing_to_wait(method: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return method(*arguments, **named)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return run


def _fallbacks(model: Any) -> dict[str, int]:
    found: dict[str, int] = toprovar_compiler.summary(model).to_dict()["fallbacks"]
    return found
