"""What the times of attention say: ratios, totals over a model's scales, and the Markdown tables of both.

``results`` are the records of single shapes: {"shape": [B, H, Nq, Nk, D], "warm": {name: times}, "cold": ...,
"refused": {name: reason}}; a name that does not support a shape is missing among its times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.attention_rivals import NAIVE, OURS, PORTABLE, RIVALS, WITHOUT_ENTROPY
from benchmarks.attention_shapes import Shape, flops
from benchmarks.graphs import STATES
from benchmarks.measure import Times

Result = dict[str, Any]


def with_rates(shape: Shape, times: Times, peak: float | None) -> Times:
    """The times of a shape, its TFLOP/s, and the share of the peak (None where that is unknown)."""
    rate = flops(shape) / times["median"] / 1e12
    return {**times, "tflops": rate, "share_of_peak": None if peak is None else rate / peak}


def medians(result: Result, state: str) -> dict[str, float]:
    return {name: times["median"] for name, times in result[state].items()}


def over_best_rival(result: Result, state: str) -> dict[str, Any]:
    """{"rival": the fastest attention of a shape, "ratio": the operator's time over its}.

    Raises:
        RuntimeError: no rival supports the shape.
    """
    seconds = medians(result, state)
    rivals = [name for name in RIVALS if name in seconds]
    if not rivals:
        raise RuntimeError(
            f"the shape {result['shape']} requires a rival that supports it, got {result['refused']}; "
            "measure on a GPU that SDPA's FlashAttention serves"
        )
    best = min(rivals, key=lambda name: seconds[name])
    return {"rival": best, "ratio": seconds[OURS] / seconds[best]}


def worst(results: Iterable[Result], state: str) -> dict[str, Any]:
    """The shape whose ratio over its best rival is the largest, with both."""
    return max(
        ({"shape": result["shape"], **over_best_rival(result, state)} for result in results),
        key=lambda entry: entry["ratio"],
    )


def totals(results: Sequence[Result], state: str) -> dict[str, Any]:
    """The operator over all scales of a model, as ratios over everything else that was measured.

    Those that were not tried at every scale are left out. A ratio over ``name`` is that of both sums over the
    scales that ``name`` supports (``scales`` says how many). "best_single" is the rival with the largest
    ratio; "over_best_per_scale" takes the best rival of each scale; "entropy_cost" is the operator's time
    over that without entropy, None if that was not measured.
    """
    times = [medians(result, state) for result in results]
    tried = [{*scale, *result["refused"]} for scale, result in zip(times, results, strict=True)]
    over = {}
    for name in (name for name in times[-1] if name != OURS and all(name in scale for scale in tried)):
        both = [(scale[OURS], scale[name]) for scale in times if name in scale]
        ours, theirs = (sum(side) for side in zip(*both, strict=True))
        over[name] = {"seconds": theirs, "ratio": ours / theirs, "scales": len(both)}
    rivals = [name for name in RIVALS if name in over]
    best_single = max(rivals, key=lambda name: over[name]["ratio"])
    best_of_each = sum(min(scale[name] for name in rivals if name in scale) for scale in times)
    seconds = sum(scale[OURS] for scale in times)
    return {
        "scales": len(results),
        "seconds": seconds,
        "over": over,
        "best_single": best_single,
        "over_best_single": over[best_single]["ratio"],
        "over_best_per_scale": seconds / best_of_each,
        "entropy_cost": over[WITHOUT_ENTROPY]["ratio"] if WITHOUT_ENTROPY in over else None,
        "worst": worst(results, state),
    }


def shape_table(results: Sequence[Result], names: Sequence[str], state: str) -> str:
    """A line per shape: the operator's time, rate and share of the peak, and its time over all others'."""
    others = [name for name in names if name != OURS]
    heading = [
        "B, H, Nq, Nk, D",
        "us",
        "quartiles",
        "TFLOP/s",
        "of the peak",
        *(f"/ {name}" for name in others),
    ]
    lines = []
    for result in results:
        ours, seconds = result[state][OURS], medians(result, state)
        ratios = [f"{seconds[OURS] / seconds[name]:.2f}" if name in seconds else "-" for name in others]
        quartiles = " to ".join(f"{second * 1e6:.1f}" for second in ours["quartiles"])
        cells = [
            f"{ours['median'] * 1e6:.1f}",
            quartiles,
            f"{ours['tflops']:.3g}",
            _share(ours["share_of_peak"]),
        ]
        lines.append([", ".join(map(str, result["shape"])), *cells, *ratios])
    return _table(heading, lines)


def total_table(models: Mapping[str, Any], absent: Mapping[str, str]) -> str:
    """A line per model and state of the L2 cache; who is absent has a column that says so."""
    measured = {name for model in models.values() for state in STATES for name in model[state]["over"]}
    names = [name for name in (PORTABLE, *RIVALS, NAIVE) if name in measured or name in absent]
    heading = ["model", "L2", "ms", "/ best rival", "/ best of each scale", "largest ratio of a scale"]
    lines = []
    for model, by_state in models.items():
        for state in STATES:
            total = by_state[state]
            best = f"{total['over_best_single']:.2f} ({total['best_single']})"
            largest = f"{total['worst']['ratio']:.2f} at {', '.join(map(str, total['worst']['shape']))}"
            cells = [f"{total['seconds'] * 1e3:.3f}", best, f"{total['over_best_per_scale']:.2f}", largest]
            lines.append(
                [
                    model,
                    state,
                    *cells,
                    *("absent" if name in absent else _over(total, name) for name in names),
                ]
            )
    return _table([*heading, *(f"/ {name}" for name in names)], lines)


def entropy_line(models: Mapping[str, Any]) -> str:
    """What entropy itself costs, over the scales of each model where a kernel can do without it."""
    costs = [
        f"{model} {by_state[state]['entropy_cost']:.3f} ({state})"
        for model, by_state in models.items()
        for state in STATES
        if by_state[state]["entropy_cost"] is not None
    ]
    if not costs:
        return "Entropy's own cost was not measured: no kernel here has a variant without it."
    return f"The operator over itself without entropy: {', '.join(costs)}."


def host_table(host: Mapping[str, Times]) -> str:
    lines = [
        [name, f"{times['median'] * 1e6:.1f}", " to ".join(f"{x * 1e6:.1f}" for x in times["quartiles"])]
        for name, times in host.items()
    ]
    return _table(["host", "us a call", "quartiles"], lines)


def missing_lines(absent: Mapping[str, str], results: Iterable[Result]) -> str:
    """Who was not measured and why, and who did not support which shapes."""
    lines = [f"- {name} was not measured: {why}." for name, why in absent.items()]
    refused: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for name, why in result["refused"].items():
            refused.setdefault((name, why), []).append(", ".join(map(str, result["shape"])))
    lines += [f"- {name} does not support {'; '.join(at)}: {why}" for (name, why), at in refused.items()]
    return "\n".join(lines)


def _over(total: Mapping[str, Any], name: str) -> str:
    if name not in total["over"]:
        return "-"
    over = total["over"][name]
    partial = "" if over["scales"] == total["scales"] else f" ({over['scales']} of {total['scales']} scales)"
    return f"{over['ratio']:.2f}{partial}"


def _share(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"


def _table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
