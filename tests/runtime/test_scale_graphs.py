"""Block calls that are run ahead, a scale at a time: the same pictures, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import toprovar_compiler
from tests.runtime.recorder import Recorder
from tests.toy_generators import ClassVAR, ShiftedVAR, make
from toprovar_compiler import variants

SCALES, LAYERS = 5, 3
INSTEAD = "CUDA graphs are recorded for each block call, not for each scale: "
BETWEEN = f"{INSTEAD}a block is given a tensor that is made between blocks"
DENSE = {"policy": "dense"}
ENDS = {"keep_ratio": 0.3, "guidance_until": 3}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """An entry for each run of a compiled graph: the settings that it was compiled with."""
    seen: list[dict[str, Any]] = []

    def compiled(gm: Any, inputs: object, config_patches: dict[str, Any]) -> Any:
        def run(*arguments: Any) -> Any:
            seen.append(config_patches)
            return gm.forward(*arguments)

        return run

    monkeypatch.setattr(variants, "compile_fx", compiled)
    return seen


@pytest.fixture(scope="module")
def model() -> Any:
    """Its graphs are compiled anew for each test: the fixture above counts their runs."""
    return make(ClassVAR)


def _compiled(model: Any, **options: Any) -> Any:
    torch._dynamo.reset()
    toprovar_compiler.reset()
    return toprovar_compiler.compile(model, **options)


def _fallbacks(model: Any) -> dict[str, int]:
    found: dict[str, int] = toprovar_compiler.summary(model).to_dict()["fallbacks"]
    return {reason: count for reason, count in found.items() if "learn" not in reason}


def _paint(model: Any, labels: Tensor, count: int) -> list[Tensor]:
    return [model.autoregressive_infer_cfg(labels) for _ in range(count)]


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize(
    ("options", "guard"),
    [
        (DENSE, torch.no_grad),
        (DENSE, torch.inference_mode),
        (ENDS, torch.no_grad),
        (ENDS, torch.inference_mode),
        ({"keep_ratio": 0.3, "pruned_keys": "computed"}, torch.no_grad),
        ({"keep_ratio": 0.3, "layer_budgets": [1, 0, 1]}, torch.no_grad),
        ({"policy": "fixed-exit", "start_scale": 3}, torch.no_grad),
    ],
)
def test_a_replayed_generation_runs_each_scale_at_once_and_paints_the_same(
    model: Any,
    labels: Tensor,
    recorder: Recorder,
    calls: list[dict[str, Any]],
    options: dict[str, Any],
    guard: Callable[[], Any],
) -> None:
    with guard():
        wanted = _paint(_compiled(model, **options), labels, 2)[1]
        made = _compiled(model, mode="reduce-overhead", **options)
        _paint(made, labels, 6)
        calls.clear()
        recorder.runs = 0
        data = toprovar_compiler.summary(made).to_dict()
        assert torch.equal(made.autoregressive_infer_cfg(labels), wanted)
        after = toprovar_compiler.summary(made).to_dict()
    scales = 3 if options.get("policy") == "fixed-exit" else SCALES
    assert recorder.runs == scales
    assert len(calls) == scales * LAYERS, "nothing runs but the scales' programs"
    assert _fallbacks(made) == {}
    assert after["recompiles"] == data["recompiles"]
    if "keep_ratio" not in options:  # with it the first generation runs in full, to learn from
        assert after["flops_computed"] * 6 == data["flops_computed"] * 7


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize("options", [DENSE, ENDS])
def test_what_is_alive_when_a_scale_runs_is_the_same_in_each_generation(
    model: Any, labels: Tensor, recorder: Recorder, options: dict[str, Any]
) -> None:
    """Else Inductor records its CUDA graphs anew, generation after generation."""
    made = _compiled(model, mode="reduce-overhead", **options)
    _paint(made, labels, 9)
    replayed = [path for path, node in recorder.nodes.items() if len(node.alive) > 2]
    assert len(replayed) == SCALES
    for path in replayed:
        recorded, *replays = recorder.nodes[path].alive
        assert all(alive == recorded for alive in replays)


@pytest.mark.filterwarnings("ignore:toprovar")
def test_nothing_is_held_after_a_generation(model: Any, labels: Tensor, recorder: Recorder) -> None:
    made = _compiled(model, mode="reduce-overhead", policy="dense")
    for _ in range(7):
        made.autoregressive_infer_cfg(labels)
        assert not any(any(node.held()) for node in recorder.nodes.values())


@pytest.mark.filterwarnings("ignore:toprovar")
def test_batches_of_two_sizes_have_scales_of_their_own(model: Any, recorder: Recorder) -> None:
    batches = [torch.tensor([1]), torch.tensor([1, 2])] * 7
    plain = _compiled(model, keep_ratio=0.3)
    wanted = [plain.autoregressive_infer_cfg(batch) for batch in batches]
    made = _compiled(model, mode="reduce-overhead", keep_ratio=0.3)
    for batch, picture in zip(batches, wanted, strict=True):
        assert torch.equal(made.autoregressive_infer_cfg(batch), picture)
    recorder.runs = 0
    for batch in batches[:2]:
        made.autoregressive_infer_cfg(batch)
    assert recorder.runs == 2 * SCALES
    assert _fallbacks(made) == {}


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize("options", [DENSE, ENDS])
def test_buffers_of_blocks_belong_to_the_scale(
    labels: Tensor, recorder: Recorder, options: dict[str, Any]
) -> None:
    """Dynamo compiles one block for all, and marks the buffers of that one only."""
    model = make(ShiftedVAR)
    plain = _compiled(model, **options)
    wanted = _paint(plain, labels, 2)[1]
    with torch.no_grad():
        model.blocks[1].shift = model.blocks[1].shift + 1
        moved = plain.autoregressive_infer_cfg(labels)
        model.blocks[1].shift = model.blocks[1].shift - 1
    made = _compiled(model, mode="reduce-overhead", **options)
    _paint(made, labels, 6)
    recorder.runs = 0
    torch.testing.assert_close(made.autoregressive_infer_cfg(labels), wanted)
    assert recorder.runs == SCALES
    assert _fallbacks(made) == {}
    with torch.no_grad():
        model.blocks[1].shift = model.blocks[1].shift + 1
    torch.testing.assert_close(made.autoregressive_infer_cfg(labels), moved)


@pytest.mark.filterwarnings("ignore:toprovar")
def test_policies_that_choose_in_each_block_get_graphs_of_block_calls_counted(
    model: Any, labels: Tensor, recorder: Recorder, calls: list[dict[str, Any]]
) -> None:
    wanted = _paint(_compiled(model, policy="fastvar", keep_ratio=0.3), labels, 2)[1]
    made = _compiled(model, mode="reduce-overhead", policy="fastvar", keep_ratio=0.3)
    _paint(made, labels, 5)
    calls.clear()
    before = _fallbacks(made)
    assert torch.equal(made.autoregressive_infer_cfg(labels), wanted)
    assert sum(settings == {"triton.cudagraphs": True} for settings in calls) == 3 * LAYERS
    assert _fallbacks(made) == {BETWEEN: before[BETWEEN] + 3}, "one for each scale that it prunes"
    assert toprovar_compiler.summary(made).to_dict()["recompiles"] == 0


@pytest.mark.filterwarnings("ignore:toprovar")
def test_after_a_reset_nothing_is_counted_of_what_ran_before(
    model: Any, labels: Tensor, recorder: Recorder
) -> None:
    made = _compiled(model, mode="reduce-overhead", policy="fastvar", keep_ratio=0.3)
    _paint(made, labels, 5)
    assert BETWEEN in _fallbacks(made)
    made.autoregressive_infer_cfg(labels)
    toprovar_compiler.reset()
    assert _fallbacks(made) == {}


class _Step(NamedTuple):
    """What the model's loop takes for a block: the compiled block is called with something else."""

    block: Any
    meddle: Callable[[Tensor], Tensor]

    @property
    def attn(self) -> Any:
        return self.block.attn

    def __call__(self, x: Tensor, cond_BD: Tensor) -> Any:
        return self.block(x=self.meddle(x), cond_BD=cond_BD)


class _Steps(nn.ModuleList):
    meddle: Callable[[Tensor], Tensor]

    def __iter__(self) -> Iterator[Any]:
        return (_Step(block, self.meddle) for block in self.children())


class Meddler(ClassVAR):
    """Does something to the tokens between its blocks, from the generation ``since`` on."""

    def __init__(self) -> None:
        super().__init__()
        self.since = self.generation = 0
        self.change: Callable[[Tensor], Tensor] = torch.neg
        self.blocks = _Steps(self.blocks.children())
        self.blocks.meddle = self._meddle

    def _meddle(self, x: Tensor) -> Tensor:
        return self.change(x) if self.generation >= self.since else x

    def autoregressive_infer_cfg(self, labels: Tensor, cfg: float = 1.5) -> Tensor:
        self.generation += 1
        return super().autoregressive_infer_cfg(labels, cfg)


def in_place(x: Tensor) -> Tensor:
    return x.mul_(1.5)


def anew(x: Tensor) -> Tensor:
    return x * 1.5


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize(
    ("change", "since", "guard"),
    [
        (in_place, 1, torch.no_grad),
        (in_place, 2, torch.no_grad),
        (in_place, 6, torch.no_grad),
        (anew, 1, torch.no_grad),
        (anew, 6, torch.no_grad),
        # Tensors made in inference mode have no version: a change that begins after the comparison is missed.
        (in_place, 1, torch.inference_mode),
        (anew, 6, torch.inference_mode),
    ],
)
def test_what_a_model_does_between_its_blocks_is_not_missed(
    labels: Tensor,
    recorder: Recorder,
    change: Callable[[Tensor], Tensor],
    since: int,
    guard: Callable[[], Any],
) -> None:
    eager, model = make(Meddler), make(Meddler)
    for each in (eager, model):
        each.since, each.change = since, change
    made = _compiled(model, mode="reduce-overhead", policy="dense")
    with guard():
        for _ in range(8):
            found, wanted = (each.autoregressive_infer_cfg(labels) for each in (made, eager))
            torch.testing.assert_close(found, wanted)
    if since == 1:
        assert any(reason.startswith(INSTEAD) for reason in _fallbacks(made))


@pytest.mark.filterwarnings("ignore:toprovar")
def test_a_generation_that_breaks_off_does_no_harm(
    model: Any, labels: Tensor, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _paint(_compiled(model, policy="dense"), labels, 2)[1]
    made = _compiled(model, mode="reduce-overhead", policy="dense")
    for generation in range(10):
        if generation in (1, 4, 6):
            with monkeypatch.context() as patch:
                patch.setattr(ClassVAR, "_codes", staticmethod(_fail))
                with pytest.raises(RuntimeError, match="broken off"):
                    made.autoregressive_infer_cfg(labels)
        else:
            assert torch.equal(made.autoregressive_infer_cfg(labels), wanted)


def _fail(logits: Tensor, samples: int, cfg: float) -> Tensor:
    if logits.shape[1] > 4:
        raise RuntimeError("broken off")
    return logits[:samples].argmax(-1)
