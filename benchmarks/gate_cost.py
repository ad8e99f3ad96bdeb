"""What deciding costs: the share of a warm generation that is neither the model nor its compiled graphs.

    python -m benchmarks.gate_cost [--batch 1] [--rounds 15] [--threads 2] [--device cpu] [--out FOLDER]

The embedded model paints under its calibration. Everything that toprovar's own Python does, with the
operations that it runs, is timed in place, by part: the entropy source (the ranking made of the entropies),
the gate (the sort, and the index of every row), bookkeeping (sizes, layers, scales, FLOPs, the codes that
are zeroed: all between Dynamo's guards and the compiled graph), and one ``toprovar_compiler.summary`` after
each picture. Not counted: the graphs themselves, which hold the entropy that attention returns, and the
gathers and scatters of pruned blocks; Dynamo's guards, which plain ``torch.compile`` has too. Timing adds
two clock readings to every range.

On a CPU operations have run when their call returns, so the share is of the whole time. On a GPU that is
the host's share; the device's is the time of the kernels that were launched in those ranges, over that of
all kernels, from a profile of one more generation. A read-back inside a range makes the host wait for the
device there, and shows in the host's share. Threads that share their cores with other work wait for one
another in the graphs, not here, so on a CPU that is not quiet the share is too small: the rounds' own times
show it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import toprovar_compiler
from benchmarks.generation import PROMPTS
from benchmarks.ledger import GRAPHS, PARTS, PREFIX, SUMMARY, Ledger, kept
from benchmarks.measure import environment
from examples.emojivar import load

WARM_UP = 3  # generations: graphs are compiled in the first, allocators settle in the others


def paint(model: nn.Module, ledger: Ledger, prompts: list[str], seed: int) -> tuple[float, Counter[str]]:
    """Seconds of a generation and its summary, and of each part in it."""
    ledger.seconds.clear()
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate(prompts, seed=seed)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    ledger.timed(SUMMARY, toprovar_compiler.summary)(model)
    return time.perf_counter() - start, Counter(ledger.seconds)


def device_shares(model: nn.Module, ledger: Ledger, prompts: list[str]) -> dict[str, float]:
    """Of the kernels' time of one more generation, that of each part."""
    ledger.annotate = True
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        paint(model, ledger, prompts, seed=0)
    ledger.annotate = False
    return shares_of([e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CPU])


def shares_of(events: Sequence[Any]) -> dict[str, float]:
    """Of the kernels launched in all host ranges of a profile, those launched in each part's ranges and in no
    part inside them, by time."""
    total = sum(event.device_time_total for event in events if event.cpu_parent is None)
    shares = dict.fromkeys(PARTS, 0.0)
    for event in events:
        part = event.name.removeprefix(PREFIX)
        if event.name != part and part in shares:
            inside = sum(inner.device_time_total for inner in _parts_inside(event))
            shares[part] += (event.device_time_total - inside) / total
    return shares


def _parts_inside(event: Any) -> list[Any]:
    """The outermost ranges of other parts below a range."""
    found = []
    for child in event.cpu_children:
        found += [child] if child.name.startswith(PREFIX) else _parts_inside(child)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Per part and in all: the median share of a generation, and the smallest and largest."""
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(arguments.batch)]
    ledger = Ledger()
    with kept(ledger):
        model = toprovar_compiler.compile(load(device=arguments.device, dtype=dtype))
        for seed in range(WARM_UP):
            paint(model, ledger, prompts, seed)
        toprovar_compiler.reset()
        rounds = [paint(model, ledger, prompts, seed) for seed in range(arguments.rounds)]
        results: dict[str, Any] = {"rounds": [{"seconds": total, **parts} for total, parts in rounds]}
        shares = {part: [parts[part] / total for total, parts in rounds] for part in (*PARTS, GRAPHS)}
        shares["in all"] = [sum(parts[part] for part in PARTS) / total for total, parts in rounds]
        results["share"] = {
            part: {"median": statistics.median(found), "least": min(found), "most": max(found)}
            for part, found in shares.items()
        }
        if arguments.device == "cuda":
            results["device_share"] = device_shares(model, ledger, prompts)
        results["summary"] = toprovar_compiler.summary(model).to_dict()
    return results


def table(results: dict[str, Any]) -> str:
    lines = ["| part | share of the time | from | to |", "|---|---|---|---|"]
    for part, found in results["share"].items():
        lines.append(f"| {part} | {found['median']:.2%} | {found['least']:.2%} | {found['most']:.2%} |")
    for part, share in results.get("device_share", {}).items():
        lines.append(f"| {part}, of the kernels' time | {share:.2%} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the graphs on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = measure(arguments)
    report = {
        "environment": environment(),
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "results": results,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    threads = f"-{arguments.threads}-threads" if arguments.device == "cpu" else ""
    path = arguments.out / f"gate-cost-{arguments.device}-b{arguments.batch}{threads}.json"
    path.write_text(json.dumps(report, indent=1))
    print(table(results))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
