"""Two models that compile and generate at the same time in two threads."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

import toprovar_compiler
from tests.toy_generators import ClassVAR, HandWrittenVAR, make
from toprovar_compiler import variants

_PATIENCE_S = 300.0


def test_one_compilation_at_a_time(monkeypatch: Any, labels: Tensor) -> None:
    """Inductor and Dynamo have process-wide state: their compilations must not overlap."""
    inside, overlaps = threading.Lock(), []

    def compile_fx(gm: Any, inputs: Any, config_patches: Any) -> Any:
        entered = inside.acquire(blocking=False)
        overlaps.append(not entered)
        if entered:
            threading.Event().wait(0.05)
            inside.release()
        return gm.forward

    monkeypatch.setattr(variants, "compile_fx", compile_fx)
    pictures = _in_threads(labels)
    assert not any(overlaps)
    assert len(pictures) == 2


def test_models_in_two_threads_paint_what_they_paint_alone(labels: Tensor) -> None:
    models = _models()
    alone = [model.autoregressive_infer_cfg(labels) for model in models]
    together = _in_threads(labels)
    assert all(torch.equal(together[i], alone[i]) for i in range(2))


def _models() -> list[Any]:
    return [
        toprovar_compiler.compile(make(kind, depth=2), keep_ratio=0.3) for kind in (ClassVAR, HandWrittenVAR)
    ]


def _in_threads(labels: Tensor) -> dict[int, Tensor]:
    """Each model's first generation, with all that it compiles, at the same time as the other's."""
    models, pictures, start = _models(), {}, threading.Barrier(2)

    def generate(number: int) -> None:
        start.wait()
        pictures[number] = models[number].autoregressive_infer_cfg(labels)

    threads = [threading.Thread(target=generate, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE_S)
    return pictures
