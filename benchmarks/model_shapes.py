"""Whole generations at the shapes of published models, with random weights, on one GPU.

    python -m benchmarks.model_shapes [--model infinity-2b] [--rounds 7] [--only VARIANT ...] [--out DIR]

No public weights are needed: times do not depend on what is painted. The blocks are those of the embedded
model (self-attention with normed queries and keys and 2D rope, cross-attention, AdaLN, GELU), as
wide, as deep and over the scales of the model that is named; one picture under guidance, bfloat16. All
variants share one set of weights, run in one process, warm, and take turns. "wall" is the time of `generate`
until the GPU is done, "busy" the sum of the times of its kernels and copies in one more generation, under the
profiler. Writes model-shapes-MODEL.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import toprovar_compiler
from benchmarks.measure import environment, rounds, summarise
from examples.emojivar.config import Config
from examples.emojivar.model import EmojiVAR

PROMPT = "a rocket on a plain navy background"
_WARM_UPS = 6  # in the first toprovar learns and in the second it compiles; then CUDA graphs are recorded
_GRAPHS_PER_BLOCK = 64
_OUTPUT_STD = 0.5  # of layers that start at zero, times the root of their inputs' number

SHAPES: Mapping[str, Config] = {
    "infinity-2b": Config((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64), width=2048, depth=32, heads=16),
    "hart": Config((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64), width=1536, depth=24, heads=24),
    "var-d30": Config((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), width=1920, depth=30, heads=30),
    "var-d36-512": Config((1, 2, 3, 4, 6, 9, 13, 18, 24, 32), width=2304, depth=36, heads=36),
}


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


def select(parser: argparse.ArgumentParser, only: Sequence[str] | None, scales: int) -> dict[str, Variant]:
    """The variants that ``--only`` names, or all; another name ends the program."""
    every = variants(scales)
    unknown = sorted(set(only or ()) - every.keys())
    if unknown:
        parser.error(f"--only requires names of {sorted(every)}, got {unknown}")
    return {name: every[name] for name in only or every}


def random_model(config: Config, device: str, dtype: torch.dtype, seed: int = 0) -> EmojiVAR:
    """The embedded model's code with other sizes; no layer is left at zero, where a GPU would run faster."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = EmojiVAR(config).to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            parameter.normal_(std=_OUTPUT_STD / parameter.shape[-1] ** 0.5)
    return model


def twin(model: nn.Module) -> Any:
    """Modules of their own over the same weights."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def prepare(model: nn.Module, variant: Variant) -> Any:
    """A twin of the model, which has ``blocks``, compiled as the variant says."""
    made = twin(model)
    if variant.backend == "inductor":
        torch._dynamo.config.recompile_limit = _GRAPHS_PER_BLOCK
        for block in made.blocks:
            block.compile(backend="inductor", mode=variant.mode, dynamic=None)
    elif variant.backend == "toprovar":
        toprovar_compiler.compile(made, mode=variant.mode, **variant.options)
    return made


def generate(model: nn.Module, seed: int) -> tuple[float, float]:
    """Seconds until the GPU is done, and until the host is."""
    torch.cuda.synchronize()
    torch.compiler.cudagraph_mark_step_begin()
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate([PROMPT], seed=seed)
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    return time.perf_counter() - start, host


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
    generate: Callable[[nn.Module, int], tuple[float, float]] = generate,
) -> dict[str, Any]:
    """Per variant: the first generations, then wall and host seconds of the rounds, and busy seconds."""
    models: dict[str, nn.Module] = {}
    results: dict[str, Any] = {}
    for name, variant in chosen.items():
        models[name] = prepare(model, variant)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model_shapes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=sorted(SHAPES), default="infinity-2b")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="of the table's, by name; default: all")
    parser.add_argument("--rounds", type=rounds, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("requires a GPU, got none; benchmarks.generation measures the embedded model on a CPU")
    config = SHAPES[arguments.model]
    model = random_model(config, "cuda", torch.bfloat16)
    chosen = select(parser, arguments.only, len(config.patch_nums))
    results = measure(model, chosen, arguments.rounds)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    record = {
        "environment": environment(),
        "shape": {**config.to_json(), "parameters": parameters},
        "results": results,
        "faster_than": ratios(results),
    }
    path = arguments.out / f"model-shapes-{arguments.model}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))
    print(f"\n{table(results)}\n\nwritten to {path}")


if __name__ == "__main__":
    main()
