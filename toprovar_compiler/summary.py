"""The proof of effect: what ran, what was skipped, or why nothing was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from toprovar_compiler.counters import Counters, Work
from toprovar_compiler.policies.error_bound import ErrorBound


@dataclass(frozen=True)
class Summary:
    """Counts of one compiled model, or of several added up. ``print`` shows it; ``to_dict`` gives data.

    Tokens are counted once per batch row, block and scale. FLOPs are those of the compiled blocks:
    matrix products and attention, 2 per multiply-add.
    """

    counters: tuple[Counters, ...]
    bound: ErrorBound | None = None
    """The paper's error bound for the model's last generation; None of several compilations, and where it is
    not known: where the policy asked for no entropies, and before anything was pruned."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: generations, tokens_*, flops_*, per_scale, per_layer, graphs, recompiles, fallbacks,
        error_bound."""
        total = self._sum(lambda key: True)
        fallbacks: Counter[str] = Counter()
        for counters in self.counters:
            fallbacks.update(counters.fallbacks)
        return {
            "generations": sum(c.generations for c in self.counters),
            "tokens_total": total.tokens_total,
            "tokens_computed": total.tokens_computed,
            "per_scale": [self._scale(scale) for scale in self._keys(0)],
            "per_layer": [self._layer(layer) for layer in self._keys(1)],
            "flops_total": total.flops_total,
            "flops_computed": total.flops_computed,
            "graphs": sum(c.graphs for c in self.counters),
            "recompiles": sum(c.recompiles for c in self.counters),
            "fallbacks": dict(fallbacks),
            "error_bound": None if self.bound is None else self.bound.to_dict(),
        }

    def _keys(self, part: int) -> list[int]:
        return sorted({key[part] for c in self.counters for key in c.work})

    def _sum(self, wanted: Callable[[tuple[int, int]], bool]) -> Work:
        total = Work()
        for counters in self.counters:
            for key, work in counters.work.items():
                if wanted(key):
                    total.add(work)
        return total

    def _scale(self, scale: int) -> dict[str, int]:
        work = self._sum(lambda key: key[0] == scale)
        tokens = max(c.scale_tokens.get(scale, 0) for c in self.counters)
        layers = len({key for c in self.counters for key in c.work if key[0] == scale})
        return {"scale": scale, "tokens": tokens, "layers": layers, **_entries(work)}

    def _layer(self, layer: int) -> dict[str, int]:
        return {"layer": layer, **_entries(self._sum(lambda key: key[1] == layer))}

    def __str__(self) -> str:
        data = self.to_dict()
        skipped = data["tokens_total"] - data["tokens_computed"]
        lines = [
            f"toprovar: {data['generations']} generation(s), {data['graphs']} graph(s), "
            f"{data['recompiles']} recompile(s)",
            f"  tokens x layers: {data['tokens_total']:,} due, {data['tokens_computed']:,} computed, "
            f"{skipped:,} skipped ({_share(skipped, data['tokens_total'])})",
            f"  block FLOPs: {data['flops_total'] / 1e9:,.2f} G due, "
            f"{data['flops_computed'] / 1e9:,.2f} G computed "
            f"({_times(data['flops_total'], data['flops_computed'])} fewer)",
        ]
        if data["per_scale"]:
            lines.append("  scale  tokens  layers  computed")
        for row in data["per_scale"]:
            share = _share(row["tokens_computed"], row["tokens_total"])
            lines.append(f"  {row['scale']:>5}  {row['tokens']:>6}  {row['layers']:>6}  {share:>8}")
        if self.bound is not None:
            lines.append(f"  {self.bound}")
        lines += _reasons(data["fallbacks"])
        if data["tokens_total"] and not skipped:
            lines.append("  nothing was skipped")
        elif not data["tokens_total"]:
            lines.append(
                "  no compiled block has run (if other code than the model's own methods calls its blocks, "
                "compile in place: toprovar_compiler.compile(model))"
            )
        return "\n".join(lines)


def _entries(work: Work) -> dict[str, int]:
    return {
        "tokens_total": work.tokens_total,
        "tokens_computed": work.tokens_computed,
        "flops_total": work.flops_total,
        "flops_computed": work.flops_computed,
    }


def _reasons(fallbacks: dict[str, int]) -> Sequence[str]:
    if not fallbacks:
        return ["  fallbacks: none"]
    return ["  fallbacks:", *(f"    {count} x {reason}" for reason, count in sorted(fallbacks.items()))]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _times(whole: int, part: int) -> str:
    return f"{whole / part:.2f}x" if part else "-"
