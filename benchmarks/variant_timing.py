"""Whole generations of one model, compiled in several ways, in turns on one GPU.

All variants share one set of weights, run in one process, warm, and take turns. "wall" is the time of a
generation until the GPU is done, "host" until Python is, "busy" the sum of the times of its kernels and
copies in one more generation, under the profiler.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import toprovar_compiler
from benchmarks.measure import environment, rounds, summarise

Generate = Callable[[Any, int], tuple[float, float]]
"""Paints with a model and a seed; seconds until the device is done, and until the host is."""
Blocks = Callable[[Any], Iterable[nn.Module]]

_WARM_UPS = 6  # in the first toprovar learns and in the second it compiles; then CUDA graphs are recorded
# Of the code of a block, which all variants share; Dynamo falls to eager, silently, past its limit.
_GRAPHS = 512


@dataclass(frozen=True)
class Variant:
    """How a model is compiled: not at all, by plain Inductor, or by toprovar with these options."""

    backend: str | None
    mode: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)


def variants(scales: int) -> dict[str, Variant]:
    """What is compared, for a model of so many scales: 20 % of the tokens are kept at the last four."""
    graphs = "reduce-overhead"
    plan: dict[str, Any] = {"start_scale": scales - 4, "keep_ratio": 0.2}
    return {
        "eager": Variant(None),
        "Inductor": Variant("inductor"),
        "Inductor, CUDA graphs": Variant("inductor", graphs),
        "toprovar dense, CUDA graphs": Variant("toprovar", graphs, {"policy": "dense"}),
        "toprovar": Variant("toprovar", options=plan),
        "toprovar, CUDA graphs": Variant("toprovar", graphs, plan),
        "toprovar, guidance until the late scales, CUDA graphs": Variant(
            "toprovar", graphs, {**plan, "guidance_until": scales - 4}
        ),
        "FastVAR, CUDA graphs": Variant("toprovar", graphs, {"policy": "fastvar", **plan}),
    }


def command_line(name: str, description: str | None) -> argparse.ArgumentParser:
    """The arguments that all benchmarks of variants have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="of the table's, by name; default: all")
    parser.add_argument("--rounds", type=rounds, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def need_gpu(parser: argparse.ArgumentParser) -> None:
    """Ends the program where there is none."""
    if not torch.cuda.is_available():
        parser.error("requires a GPU, got none; benchmarks.generation measures the embedded model on a CPU")


def select(
    parser: argparse.ArgumentParser, only: Sequence[str] | None, every: Mapping[str, Variant]
) -> dict[str, Variant]:
    """Those that ``--only`` names, or all; another name ends the program."""
    unknown = sorted(set(only or ()) - every.keys())
    if unknown:
        parser.error(f"--only requires names of {sorted(every)}, got {unknown}")
    return {name: every[name] for name in only or every}


def twin(model: nn.Module) -> Any:
    """Modules of their own over the same weights."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def own_blocks(model: Any) -> Iterable[nn.Module]:
    found: Iterable[nn.Module] = model.blocks
    return found


def prepare(model: nn.Module, variant: Variant, blocks: Blocks) -> Any:
    """A twin of the model, compiled as the variant says."""
    made = twin(model)
    if variant.backend == "inductor":
        for block in blocks(made):
            block.compile(backend="inductor", mode=variant.mode, dynamic=None)
    elif variant.backend == "toprovar":
        toprovar_compiler.compile(made, mode=variant.mode, **variant.options)
    return made


def timed(device: torch.device, generation: Callable[[], Any]) -> tuple[float, float]:
    """Seconds until the device is done, and until the host is."""
    _wait(device)
    torch.compiler.cudagraph_mark_step_begin()
    start = time.perf_counter()
    generation()
    host = time.perf_counter() - start
    _wait(device)
    return time.perf_counter() - start, host


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def busy_seconds(call: Callable[[], Any]) -> float:
    """The sum of the times of all kernels and copies that the call runs on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
    on_gpu = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(event.device_time for event in on_gpu) / 1e6


def measure(
    model: nn.Module,
    chosen: Mapping[str, Variant],
    count: int,
    generate: Generate,
    blocks: Blocks = own_blocks,
) -> dict[str, Any]:
    """Per variant: the first generations, then wall and host seconds of the rounds, and busy seconds.

    Args:
        blocks: gives the repeated blocks of a model, which plain Inductor compiles one by one.
    """
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = _GRAPHS
    models: dict[str, nn.Module] = {}
    results: dict[str, Any] = {}
    for name, variant in chosen.items():
        models[name] = prepare(model, variant, blocks)
        first = [generate(models[name], 0)[0] for _ in range(_WARM_UPS)]
        results[name] = {"first_s": first}
        if variant.backend == "toprovar":
            results[name]["first_fallbacks"] = toprovar_compiler.summary(models[name]).to_dict()["fallbacks"]
        print(f"{name}: warm-up {', '.join(f'{seconds:.2f}' for seconds in first)} s", flush=True)
    toprovar_compiler.reset()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for seed in range(1, count + 1):
        for name, made in models.items():
            taken[name].append(generate(made, seed))
    for name, made in models.items():
        walls, hosts = zip(*taken[name], strict=True)
        results[name] |= {"wall_s": summarise(walls), "host_s": summarise(hosts)}
        results[name]["busy_s"] = busy_seconds(lambda made=made: generate(made, 1))
        if chosen[name].backend == "toprovar":
            results[name]["summary"] = toprovar_compiler.summary(made).to_dict()
    return results


def ratios(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How many times faster each variant is, in wall time, than eager and than both forms of Inductor."""
    walls = {name: result["wall_s"]["median"] for name, result in results.items()}
    rivals = [name for name in ("eager", "Inductor", "Inductor, CUDA graphs") if name in walls]
    return {name: {rival: walls[rival] / wall for rival in rivals} for name, wall in walls.items()}


def table(results: Mapping[str, Any]) -> str:
    """A line per variant."""
    over = ratios(results)
    rivals = list(next(iter(over.values())))
    lines = [
        "| variant | wall, ms | quartiles | GPU busy, ms | block FLOPs, times fewer | "
        + " | ".join(f"faster than {rival}" for rival in rivals)
        + " |",
        "|---" * (5 + len(rivals)) + "|",
    ]
    for name, result in results.items():
        low, high = (seconds * 1e3 for seconds in result["wall_s"]["quartiles"])
        cells = [
            name,
            f"{result['wall_s']['median'] * 1e3:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{result['busy_s'] * 1e3:.1f}",
            _fewer_flops(result),
            *(f"{over[name][rival]:.2f}" for rival in rivals),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fewer_flops(result: Mapping[str, Any]) -> str:
    if "summary" not in result:
        return "1"
    return f"{result['summary']['flops_total'] / result['summary']['flops_computed']:.2f}"


def write(path: Path, results: Mapping[str, Any], **about: Any) -> None:
    """The record with its environment and what else is known ``about`` the model; prints the table."""
    record = {"environment": environment(), **about, "results": results, "faster_than": ratios(results)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))
    print(f"\n{table(results)}\n\nwritten to {path}")
