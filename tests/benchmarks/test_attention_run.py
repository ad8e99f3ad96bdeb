"""The whole attention benchmark with made-up times: what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import attention
from benchmarks.attention_rivals import CUDNN, FA2, FA3, OURS, Contender, Field
from benchmarks.attention_shapes import GPU_SHAPES, MODELS, Shape, distinct_shapes
from benchmarks.graphs import STATES
from tests.benchmarks.records import times

ABSENT = {FA3: "not installed"}
SECONDS = {OURS: 2e-3, FA2: 4e-3, CUDNN: 1e-3}


def _meta(shape: Shape, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    batch, heads, queries, keys, size = shape
    return [torch.empty(batch, heads, n, size, dtype=dtype, device="meta") for n in (queries, keys, keys)]


@pytest.fixture
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that nobody has heard of; cuDNN refuses a single key, FlashAttention 3 is not installed."""
    contenders = tuple(Contender(name, lambda q, k, v: lambda: None) for name in SECONDS)

    def supported(
        contenders: list[Contender], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[dict[str, object], dict[str, str]]:
        refused = {CUDNN: "a single key"} if k.shape[2] == 1 else {}
        return {name: bind for name, bind, _ in contenders if name not in refused}, refused

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Card")
    monkeypatch.setattr(attention, "environment", lambda: {"command": "the command"})
    monkeypatch.setattr(attention, "rival_versions", dict)
    monkeypatch.setattr(attention, "on_gpu", lambda: Field(contenders, dict(ABSENT)))
    monkeypatch.setattr(attention, "flex", lambda: Contender("flex_attention", lambda q, k, v: lambda: None))
    monkeypatch.setattr(attention, "operands", _meta)
    monkeypatch.setattr(attention, "supporting", supported)
    monkeypatch.setattr(attention, "host_times", lambda call, count: times(2e-5))
    monkeypatch.setattr(
        attention,
        "warm_and_cold",
        lambda calls, count: {
            state: {name: times(SECONDS.get(name, 5e-3)) for name in calls} for state in STATES
        },
    )


@pytest.mark.usefixtures("_made_up")
def test_a_gpu_run_writes_record_tables_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["attention", "--rounds", "3", "--out", str(tmp_path)])
    attention.main()
    record = json.loads((tmp_path / "attention-cuda.json").read_text())
    assert [tuple(result["shape"]) for result in record["shapes"]] == distinct_shapes()
    with_flex = [tuple(r["shape"]) for r in record["shapes"] if "flex_attention" in r["warm"]]
    assert sorted(with_flex) == sorted(GPU_SHAPES)
    assert set(record["models"]) == set(MODELS)
    total = record["models"]["Infinity-2B"]["cold"]
    assert total["over_best_single"] == pytest.approx(2.0)
    assert total["over"][CUDNN]["scales"] == 12
    assert record["absent"] == ABSENT
    assert record["peak"]["dense_bfloat16_tflops"] is None
    assert record["worst"]["warm"]["ratio"] == pytest.approx(2.0)
    text = (tmp_path / "attention-cuda.md").read_text()
    assert "FlashAttention 3 was not measured: not installed." in text
    assert "own cost was not measured: no kernel here has a variant without it." in text
    assert "cuDNN does not support 2, 16, 1, 1, 128; " in text
    assert "peak unknown TFLOP/s" in text
    assert text in capsys.readouterr().out + "\n"
    with Image.open(tmp_path / "attention-cuda.png") as picture:
        assert picture.format == "PNG"


def test_a_cpu_run_writes_record_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(attention, "CPU_SHAPES", ((1, 2, 8, 12, 16),))
    monkeypatch.setattr(sys, "argv", ["attention", "--rounds", "3", "--out", str(tmp_path)])
    attention.main()
    record = json.loads((tmp_path / "attention-cpu.json").read_text())
    assert [result["dtype"] for result in record["shapes"]] == ["float32", "bfloat16"]
    assert all(set(result["warm"]) == {"toprovar", "SDPA"} for result in record["shapes"])
    assert (tmp_path / "attention-cpu.md").read_text().count("| 1, 2, 8, 12, 16 |") == 2


def test_bad_rounds_end_the_run_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["attention", "--rounds", "0"])
    with pytest.raises(SystemExit) as stop:
        attention.main()
    assert stop.value.code == 2
    assert "requires a whole number of at least 3" in capsys.readouterr().err
