"""What was decided: the options in force, and the tokens kept per scale and layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

from toprovar_compiler.options import DEFAULT_KEEP_RATIO, Options
from toprovar_compiler.report.labels import scale_title
from toprovar_compiler.report.markup import Markup, element, table
from toprovar_compiler.report.painting import Pair
from toprovar_compiler.report.recording import Call


def options_table(options: Options, given: Collection[str]) -> Markup:
    """Every option with its value, and whether it is the user's or the default."""
    rows = [
        [element("code", name), _option(name, value), "given" if name in given else "default"]
        for name, value in asdict(options).items()
    ]
    return table("Options of the policy", ["option", "value", "from"], rows)


def first_pruned_scale(pair: Pair) -> int | None:
    """The first scale at which not all tokens were computed in all layers; None if there is none."""
    return min(pair.pruned.kept, default=None)


def kept_table(pair: Pair) -> Markup:
    """Tokens computed per scale and layer under the policy; a row for each scale that either run had."""
    dense, pruned = pair.dense.calls, pair.pruned.calls
    layers = sorted({layer for _, layer in (*dense, *pruned)})
    rows = []
    for scale in sorted({scale for scale, _ in (*dense, *pruned)}):
        tokens = next(call.tokens for place, call in (*dense.items(), *pruned.items()) if place[0] == scale)
        calls = [pruned.get((scale, layer)) for layer in layers]
        kept = sum(call.kept for call in calls if call is not None)
        share = f"{100 * kept / (tokens * len(layers)):.1f} %"
        rows.append([scale_title(scale, tokens), share, *(_kept(call) for call in calls)])
    titles = ["scale", "computed", *(f"layer {layer}" for layer in layers)]
    return table("Tokens computed per scale and layer", titles, rows)


def _kept(call: Call | None) -> Markup:
    if call is None:
        return element("span", "not run", class_="pruned")
    return element("span", call.kept, class_="pruned" if call.kept < call.tokens else "full")


def _option(name: str, value: object) -> str:
    if name == "keep_ratio" and value is None:
        return f"{DEFAULT_KEEP_RATIO}"
    return "not set" if value is None else f"{value}"
