"""The ops that random programs are made of, each with what is expected of it.

``tokenwise`` ops act on each token alone and must not stop the rewrite; ``mixing`` ops bring tokens or
samples together and must stop it; ``unsure`` ops may do either, as long as no wrong number comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.property.entropy_oracle import softmax_entropy
from tests.property.tables import Table

Kind = Literal["tokenwise", "mixing", "unsure"]


@dataclass
class Env:
    """What an op may read: inputs of this sample (or of all), tables made for its tokens, N as a number."""

    inputs: dict[str, Tensor]
    tables: dict[Table, Tensor]
    total: int
    entropies: list[Tensor] | None = None
    extras: list[object] = field(default_factory=list)

    def observe(self, q: Tensor, k: Tensor, scale: float) -> None:
        """Called with what attention is given: the oracle keeps the entropy [B, H, Nq]."""
        if self.entropies is not None:
            self.entropies.append(softmax_entropy(q, k, scale))

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]


StreamOp = Callable[[Tensor, Env, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Op:
    """An op on [B, N, C]; it gets a table of layout "stream" if ``table``."""

    function: StreamOp
    kind: Kind
    table: bool = False


def _modulate(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    shift, scale = env["cond"].unsqueeze(1).chunk(2, -1)
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def _gate(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    one, two = F.linear(x, env["up"]).chunk(2, dim=-1)
    return F.silu(one) * two


def _split_heads(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    B, N, C = x.shape
    return (x.view(B, N, 2, C // 2).transpose(1, 2) * 0.9).transpose(1, 2).reshape(B, N, C)


def _in_place(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    y = F.linear(x, env["w0"])
    y += env["b0"]
    y.mul_(0.5)
    return y


def _in_place_view(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    y = x.clone()
    y[..., :2] += 1.0
    return y


def _rope(x: Tensor, env: Env, table: Tensor | None) -> Tensor:
    assert table is not None
    even, odd = x[..., ::2], x[..., 1::2]
    c, s = table[..., : even.shape[-1]].cos(), table[..., : even.shape[-1]].sin()
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2)


def _stack_unbind(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    one, two, three = torch.stack([x, x * 0.5, x.tanh()], 0).unbind(0)
    return one - two + three


def _cat_chunk(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    one, two = torch.cat([x, x.sigmoid()], -1).chunk(2, -1)
    return one * two


def _rms(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * env["b0"]


def _statistics(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.5) + x.amax(-1).unsqueeze(-1)


def _cat_table(x: Tensor, env: Env, table: Tensor | None) -> Tensor:
    assert table is not None
    return F.linear(torch.cat([x, table.expand_as(x)], -1), env["down"])


def _where_table(x: Tensor, env: Env, table: Tensor | None) -> Tensor:
    assert table is not None
    return torch.where(table > 0.4, x, x * 0.5)


def _norm_of_table(x: Tensor, env: Env, table: Tensor | None) -> Tensor:
    assert table is not None
    return torch.addcmul(x, F.softmax(table, -1), env["cond"][:, None, :1], value=0.5)


def _tokenwise() -> dict[str, Op]:
    plain: dict[str, StreamOp] = {
        "gelu": lambda x, e, _: F.gelu(x, approximate="tanh"),
        "silu": lambda x, e, _: F.silu(x) + x.tanh() * 0.5,
        "relu_square": lambda x, e, _: x.relu().square() * 0.5 - x,
        "affine": lambda x, e, _: x * 1.5 + 0.25,
        "clamp": lambda x, e, _: x.clamp(-1.5, 1.5) - 0.1 * x.abs().sqrt(),
        "linear": lambda x, e, _: F.linear(x, e["w0"], e["b0"]),
        "matmul": lambda x, e, _: x @ e["w1"] + x,
        "mlp": lambda x, e, _: F.linear(F.gelu(F.linear(x, e["up"])), e["down"]),
        "layer_norm": lambda x, e, _: F.layer_norm(x, x.shape[-1:], e["b0"], e["b0"]),
        "rms": _rms,
        "normalize": lambda x, e, _: F.normalize(x, dim=-1) * 2.0,
        "softmax_channels": lambda x, e, _: x.softmax(-1) + x.log_softmax(-1) * 0.1,
        "cumsum_channels": lambda x, e, _: x.cumsum(-1) * 0.3,
        "statistics": _statistics,
        "modulate": _modulate,
        "gate": _gate,
        "glu": lambda x, e, _: F.glu(F.linear(x, e["up"]), -1),
        "split_heads": _split_heads,
        "in_place": _in_place,
        "stack_unbind": _stack_unbind,
        "cat_chunk": _cat_chunk,
        "round_trip": lambda x, e, _: x.float().double() + x.contiguous() * 0.5,
        "dropout_off": lambda x, e, _: F.dropout(x, 0.5, training=False) * 0.9,
        "transposed": lambda x, e, _: (x.transpose(1, 2) * e["b0"][:, None]).transpose(1, 2),
        "squeezed": lambda x, e, _: x.unsqueeze(2).permute(2, 0, 1, 3).squeeze(0) * 0.8,
        "cond_where": lambda x, e, _: torch.where(e["cond"][:, None, : x.shape[-1]] > 0, x, -x),
        "channel_index": lambda x, e, _: x[..., :2].sum(-1, keepdim=True) * 0.5 + x,
        "constant": lambda x, e, _: x * torch.tensor(0.5) + torch.tensor([0.1]),
        "doubled": lambda x, e, _: x + x,
    }
    tabled: dict[str, StreamOp] = {
        "table_add": lambda x, e, t: x + t,
        "table_mul": lambda x, e, t: t * x + 0.1,
        "rope": _rope,
        "cat_table": _cat_table,
        "where_table": _where_table,
        "table_reduced": _norm_of_table,
    }
    return {n: Op(f, "tokenwise") for n, f in plain.items()} | {
        n: Op(f, "tokenwise", True) for n, f in tabled.items()
    }


def _token_attention(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    return (x @ x.transpose(1, 2)).softmax(-1) @ x


def _convolution(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    return F.conv1d(x.transpose(1, 2), env["conv"], padding=1).transpose(1, 2)


def _shift(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    return torch.cat([x[:, 1:], x[:, :1]], 1)


def _merge_and_mean(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    return x - x.reshape(x.shape[0] * x.shape[1], x.shape[2]).mean(0)


def _reinterpret(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    B, N, C = x.shape
    return x.reshape(B, C, N).transpose(1, 2)


def _mixing() -> dict[str, Op]:
    functions: dict[str, StreamOp] = {
        "mean_tokens": lambda x, e, _: x - x.mean(1, keepdim=True),
        "mean_all": lambda x, e, _: x - x.mean(),
        "max_tokens": lambda x, e, _: x - x.amax(1, keepdim=True),
        "flip_tokens": lambda x, e, _: x + x.flip(1),
        "roll_tokens": lambda x, e, _: x + x.roll(1, 1),
        "cumsum_tokens": lambda x, e, _: x.cumsum(1),
        "softmax_tokens": lambda x, e, _: x.softmax(1),
        "first_token": lambda x, e, _: x + x[:, :1],
        "select_token": lambda x, e, _: x + x[:, -1][:, None],
        "token_matmul": _token_attention,
        "convolution": _convolution,
        "shift": _shift,
        "sort_tokens": lambda x, e, _: x.sort(1).values,
        "merge_mean": _merge_and_mean,
        "reinterpret": _reinterpret,
        "instance_norm": lambda x, e, _: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1),
        "whole_norm": lambda x, e, _: F.layer_norm(x, x.shape[1:]),
        "mean_samples": lambda x, e, _: x - x.mean(0),
        "flip_samples": lambda x, e, _: x + x.flip(0),
        "roll_samples": lambda x, e, _: x + x.roll(1, 0),
        "token_norm": lambda x, e, _: F.normalize(x, dim=1),
        "table_matmul": lambda x, e, _: x + e["square"][: x.shape[1], : x.shape[1]] @ x,
    }
    return {name: Op(function, "mixing") for name, function in functions.items()}


def _merged(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    return F.linear(x.reshape(-1, x.shape[-1]), env["w0"]).view_as(x)


def _merged_norm(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    return F.layer_norm(x.flatten(0, 1), x.shape[-1:]).unflatten(0, x.shape[:2])


def _sequence_first(x: Tensor, env: Env, _: Tensor | None) -> Tensor:
    return F.linear(x.transpose(0, 1), env["w0"]).transpose(0, 1)


def _unsure() -> dict[str, Op]:
    functions: dict[str, StreamOp] = {
        "merged": _merged,
        "merged_norm": _merged_norm,
        "sequence_first": _sequence_first,
        "in_place_view": _in_place_view,
        "flip_channels": lambda x, e, _: x.flip(-1),
        "roll_channels": lambda x, e, _: x.roll(1, -1),
        "sort_channels": lambda x, e, _: x.sort(-1).values,
        "pad": lambda x, e, _: F.pad(x, (0, 1))[..., 1:],
        "einsum": lambda x, e, _: torch.einsum("bnc,cd->bnd", x, e["w0"]),
        "repeat": lambda x, e, _: x.repeat(1, 1, 2)[..., ::2],
        "max_channels": lambda x, e, _: x - x.max(-1, keepdim=True).values,
        "topk_channels": lambda x, e, _: x + x.topk(1, -1).values,
        "number_divide": lambda x, e, _: x * (4.0 / e.total),
        "number_power": lambda x, e, _: x * e.total**-0.5,
        "number_tensor": lambda x, e, _: x / torch.full((), e.total, dtype=x.dtype),
        "zeros_like": lambda x, e, _: x + torch.ones_like(x),
        "new_full": lambda x, e, _: x + x.new_full((x.shape[1], 1), 0.5),
        "group_norm": lambda x, e, _: F.group_norm(x.transpose(1, 2), 1).transpose(1, 2) * 0.0 + x,
        "complex": lambda x, e, _: torch.view_as_real(
            torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * 1j
        ).flatten(-2),
        "bmm": lambda x, e, _: torch.bmm(x, e["w0"].expand(x.shape[0], -1, -1)),
        "baddbmm": lambda x, e, _: torch.baddbmm(x, x, e["w0"].expand(x.shape[0], -1, -1)),
        "addmm": lambda x, e, _: torch.addmm(e["b0"], x.reshape(-1, x.shape[-1]), e["w0"]).view(x.shape),
        "vector": lambda x, e, _: (x @ e["b0"]).unsqueeze(-1) + x,
        "rowwise": lambda x, e, _: e["w0"].matmul(x.transpose(1, 2)).transpose(1, 2),
        "movedim": lambda x, e, _: x.movedim(1, 0).movedim(0, 1) * 2,
        "cross": lambda x, e, _: x.unflatten(-1, (2, -1)).diff(dim=-1).sum(-1).sum(-1, keepdim=True) + x,
        "masked_fill": lambda x, e, _: x.masked_fill(x > 1.0, 0.5),
        "outer": lambda x, e, _: (x.unsqueeze(-1) * x.unsqueeze(-2)).mean(-1),
    }
    return {name: Op(function, "unsure") for name, function in functions.items()}


OPS: dict[str, Op] = {**_tokenwise(), **_mixing(), **_unsure()}


def names(kind: Kind) -> list[str]:
    return sorted(name for name, op in OPS.items() if op.kind == kind)
