"""What was computed and what was not: the raw numbers behind the summary."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass
class Work:
    """Tokens (batch rows x tokens) and FLOPs, due and done, of some part of the runs."""

    tokens_total: int = 0
    tokens_computed: int = 0
    flops_total: int = 0
    flops_computed: int = 0

    def of_more_rows(self, times: int) -> Work:
        """The same done where ``times`` as many rows were due."""
        due, flops = self.tokens_total * times, self.flops_total * times
        return Work(due, self.tokens_computed, flops, self.flops_computed)

    def add(self, other: Work) -> None:
        self.tokens_total += other.tokens_total
        self.tokens_computed += other.tokens_computed
        self.flops_total += other.flops_total
        self.flops_computed += other.flops_computed


@dataclass
class Counters:
    """Counts of one compiled model since its last reset."""

    name: str
    generations: int = 0
    graphs: int = 0
    recompiles: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    scale_tokens: dict[int, int] = field(default_factory=dict)
    work: dict[tuple[int, int], Work] = field(default_factory=lambda: defaultdict(Work))

    def record(self, scale: int, layer: int, tokens: int, work: Work) -> None:
        """One block call: ``tokens`` is N of the scale, ``work`` what it took."""
        self.scale_tokens[scale] = tokens
        self.work[scale, layer].add(work)

    def fall_back(self, reason: str) -> None:
        self.fallbacks[reason] += 1

    def total(self) -> Work:
        total = Work()
        for work in self.work.values():
            total.add(work)
        return total

    def clear(self) -> None:
        self.generations = self.graphs = self.recompiles = 0
        self.fallbacks.clear()
        self.scale_tokens.clear()
        self.work.clear()
