"""The tables of the layer study, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def tables(study: Mapping[str, Any]) -> str:
    """All of a report that is meant for reading."""
    parts = [layer_table(study), correlation_table(study["correlations"])]
    parts += [f"{name}:\n\n{contest_table(rows)}" for name, rows in study["contests"].items()]
    return "\n\n".join(parts)


def layer_table(study: Mapping[str, Any]) -> str:
    """Per layer: the damage and the gains."""
    damage, gains = study["damage"], study["gains"]
    rows = [["layer", "damage, 1 - SSIM", "feature error", *(f"gain, {name}" for name in gains)]]
    for layer, own in enumerate(damage["ssim"]):
        row = [str(layer), interval(own, ".4f"), f"{damage['feature_error'][layer]['value']:.4f}"]
        row += [interval(of["ssim"][layer], "+.4f") for of in gains.values()]
        rows.append(row)
    return _markdown(rows)


def correlation_table(correlations: Mapping[str, Any]) -> str:
    """Per statistic and scale: rho from one half of the prompts to the other, both ways, strongest first."""
    rows = [["statistic", "scale", "rho", "and back", "p", "p of the strongest", "predicts"]]
    for name, found in sorted(correlations.items(), key=lambda item: -item[1]["weaker_rho"]):
        ways = [found["first to second"], found["second to first"]]
        row = [*name.split(", ")]
        row += [interval({"value": way["rho"], **way}) for way in ways]
        row += [f"{max(way[key] for way in ways):.4f}" for key in ("p", "p_of_strongest")]
        rows.append([*row, "yes" if found["predicts"] else "no"])
    return _markdown(rows)


def contest_table(contest: Sequence[Mapping[str, Any]]) -> str:
    """Per budget: what runs in full, what it takes and what it gives."""
    rows = [
        [
            "budget",
            "in full",
            "the others keep",
            "FLOPs, times fewer",
            "SSIM",
            "minus all alike",
            "minus scale-exit",
        ]
    ]
    for row in contest:
        rows.append(
            [
                row["budget"],
                ", ".join(str(layer) for layer in row["full"]) or "-",
                f"{row['keep_ratio']:.3f}",
                f"{1 / row['flops']:.2f}",
                f"{row['ssim']:.4f}",
                interval(row["minus_uniform"], "+.4f"),
                interval(row["minus_default"], "+.4f"),
            ]
        )
    return _markdown(rows)


def interval(found: Mapping[str, Any], form: str = "+.2f") -> str:
    """A value and its bounds in brackets."""
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
