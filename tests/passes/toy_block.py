"""A small attention block with places to plant things in, and what it must give on some of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tests.passes.graphs import capture_program, rewritten
from toprovar_compiler.passes.match_attention import MatchAttention

B, N, H, D = 2, 6, 2, 4
C = H * D
CACHED = 3
BUFFER_ROWS = 20
TEXT = 5

# Float64 on both sides: values below 10 and sums of less than 100 terms, in another order, a few in a row.
TOLERANCE = 10 * 100 * torch.finfo(torch.float64).eps * 10

DYNAMIC = {"x": (1,), "past_k": (2,), "past_v": (2,)}
_PER_SAMPLE = ("x", "past_k", "past_v", "cond", "text")

Inputs = dict[str, Tensor]
Step = Callable[[Tensor, Inputs], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, Inputs], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def cache_behind(k: Tensor, v: Tensor, given: Inputs) -> tuple[Tensor, Tensor]:
    """Keys and values behind those of earlier scales, where there are any."""
    if "past_k" not in given:
        return k, v
    return torch.cat([given["past_k"], k], 2), torch.cat([given["past_v"], v], 2)


@dataclass(frozen=True)
class Block:
    """``x + proj(attend(q, k, v))`` on x [B, N, C]; returns it with all keys and values.

    Attributes:
        tables: what is made for all N tokens, [N, ...] each; every other part finds it among the inputs.
        before, after: on [B, N, C], ahead of the projection and behind the residual.
        heads: on queries and keys [B, H, N, D].
        extra: what is returned beside, from the tokens ahead of the projection.
    """

    attend: Attend = sdpa
    tables: Callable[[Inputs], Inputs] = lambda given: {}
    before: Step = lambda x, given: x
    heads: Step = lambda t, given: t
    cache: Callable[[Tensor, Tensor, Inputs], tuple[Tensor, Tensor]] = cache_behind
    after: Step = lambda x, given: x
    extra: Callable[[Tensor, Inputs], Sequence[object]] = lambda h, given: ()

    def __call__(self, given: Inputs) -> tuple[object, ...]:
        return self.on_rows({**given, **self.tables(given)})

    def on_rows(self, given: Inputs) -> tuple[object, ...]:
        """The block on the tokens that ``given`` has, tables included."""
        x = given["x"]
        h = self.before(F.layer_norm(x, x.shape[-1:]), given)
        q, k, v = F.linear(h, given["wqkv"]).view(*h.shape[:2], 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = self.cache(self.heads(k, given), v, given)
        out = self.attend(self.heads(q, given), k, v, given)
        x = self.after(x + F.linear(out.transpose(1, 2).flatten(2), given["proj"]), given)
        return (x, k, v, *self.extra(h, given))


def make_inputs(cached: int = CACHED, dtype: torch.dtype = torch.float64) -> Inputs:
    """Inputs by name, in the order of the graph's placeholders; with ``cached`` 0 there is no cache."""
    generator = torch.Generator().manual_seed(5)

    def normal(*sizes: int, fan: int = 1) -> Tensor:
        return (torch.randn(*sizes, generator=generator, dtype=torch.float64) * fan**-0.5).to(dtype)

    inputs = {"x": normal(B, N, C)}
    if cached:
        inputs |= {"past_k": normal(B, H, cached, D), "past_v": normal(B, H, cached, D)}
    inputs |= {"wqkv": normal(3 * C, C, fan=C), "proj": normal(C, C, fan=C), "w": normal(C, C, fan=C)}
    inputs |= {"b": normal(C), "cond": normal(B, C), "buffer": normal(BUFFER_ROWS, D)}
    return inputs | {"text": normal(B, H, TEXT, D)}


def captured(block: Callable[[Inputs], object], inputs: Inputs) -> fx.GraphModule:
    """The block's graph with symbolic numbers of tokens and cached keys."""
    return capture_program(block, inputs, DYNAMIC)


def typed(block: Callable[[Inputs], object], inputs: Inputs) -> fx.GraphModule:
    """The same after ``MatchAttention``: ready to be typed, fused and pruned."""
    return rewritten(captured(block, inputs), MatchAttention())


def on_kept(block: Block, inputs: Inputs, index: Tensor, base: Tensor) -> list[object]:
    """What the eager block gives each sample by itself on its tokens ``index`` [B, K].

    The other tokens become ``base`` [B, N, C]; the keys and values are those of the cache and of K tokens.
    """
    made = block.tables(inputs)
    samples = []
    for sample in range(len(index)):
        mine = {n: t[sample : sample + 1] if n in _PER_SAMPLE else t for n, t in inputs.items()}
        rows = {name: table[index[sample]] for name, table in made.items()}
        samples.append(block.on_rows({**mine, **rows, "x": mine["x"][:, index[sample]]}))
    stream, *rest = (torch.cat(parts) for parts in zip(*samples, strict=True))
    return [scattered(base, index, stream), *rest]


def scattered(base: Tensor, index: Tensor, kept: Tensor) -> Tensor:
    result = base.clone()
    result[torch.arange(len(index))[:, None], index] = kept
    return result


def assert_equal(actual: Sequence[object], expected: Sequence[object]) -> None:
    assert len(actual) == len(expected)
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=TOLERANCE, atol=TOLERANCE)
