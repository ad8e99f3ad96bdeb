"""The whole page: one string of HTML that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toprovar_compiler.report.decisions import options_table
from toprovar_compiler.report.markup import Markup, element, markup, table
from toprovar_compiler.report.painting import Painted
from toprovar_compiler.report.prompt_section import prompt_section
from toprovar_compiler.report.style import STYLE

# What a browser may load: nothing from anywhere. The style and the pictures are inside the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Origin:
    """Where the run took place: ``commit`` and ``environment`` as :mod:`toprovar_compiler.environment` gives
    them, ``given`` the options that the user set."""

    command: str
    commit: Mapping[str, Any] | None
    environment: Mapping[str, Any]
    model: str
    device: str
    dtype: str
    given: Mapping[str, Any]


def render(painted: Painted, origin: Origin) -> str:
    """The page of a run."""
    counters = painted.summary.to_dict()
    policy = painted.options.policy
    prompts = [
        prompt_section(number, pair, policy, list(counters["fallbacks"]))
        for number, pair in enumerate(painted.pairs, start=1)
    ]
    title = f"toprovar report: {policy}, {len(prompts)} prompt{'s' if len(prompts) > 1 else ''}"
    body = (
        element("header", element("h1", title), _result(counters), _contents(painted)),
        element(
            "main",
            *prompts,
            element(
                "section",
                element("h2", "Options"),
                options_table(painted.options, origin.given),
                id="options",
            ),
            _counters(counters),
            _origin(origin),
        ),
    )
    return "<!DOCTYPE html>\n" + element("html", _head(title), element("body", *body), lang="en")


def _head(title: str) -> Markup:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(STYLE)),
    )


def _result(counters: Mapping[str, Any]) -> Markup:
    """The effect in one line, and every reason why there was less."""
    due, done = counters["tokens_total"], counters["tokens_computed"]
    flops = counters["flops_computed"]
    if not due:
        effect = "No compiled block has run."
    elif done == due:
        effect = "Nothing was skipped."
    else:
        fewer = f"{counters['flops_total'] / flops:.2f} times fewer FLOPs" if flops else "no FLOPs at all"
        effect = f"{100 * (1 - done / due):.1f} % of the tokens were not computed: {fewer} in the blocks."
    reasons = [
        element("li", f"{count} x {reason}") for reason, count in sorted(counters["fallbacks"].items())
    ]
    if not reasons:
        return element("p", effect, class_="effect")
    heading = element("p", "What was due and not possible, or worse than it should be:")
    note = element("div", heading, element("ul", *reasons), class_="note", role="note")
    return markup(element("p", effect, class_="effect"), note)


def _contents(painted: Painted) -> Markup:
    targets = [(f"prompt-{number}", pair.prompt) for number, pair in enumerate(painted.pairs, start=1)]
    targets += [("options", "Options"), ("counters", "Counters"), ("origin", "Where it ran")]
    links = [element("li", element("a", text, href=f"#{target}")) for target, text in targets]
    return element("nav", element("ul", *links), aria_label="contents")


def _counters(counters: Mapping[str, Any]) -> Markup:
    """All of the summary's data: its numbers in one table, each of its lists and dictionaries in its own."""
    single = {name: value for name, value in counters.items() if not isinstance(value, (list, dict))}
    tables = [_facts("Totals", single)]
    for name, value in counters.items():
        if isinstance(value, dict):
            tables.append(_facts(_words(name), value) if value else element("p", f"{_words(name)}: none."))
        elif isinstance(value, list) and value:
            titles = list(value[0])
            rows = [[_value(row[title]) for title in titles] for row in value]
            tables.append(table(_words(name), [_words(title) for title in titles], rows))
    return element("section", element("h2", "Counters"), *tables, id="counters")


def _origin(origin: Origin) -> Markup:
    where = {"model": origin.model, "device": origin.device, "dtype": origin.dtype}
    if origin.commit is not None:
        changed = " (modified)" if origin.commit["modified"] else ""
        where["commit"] = f"{origin.commit['id']}{changed}"
    else:
        where["commit"] = "unknown"
    return element(
        "section",
        element("h2", "Where it ran"),
        element("pre", origin.command),
        _facts("Environment", {**where, **origin.environment}),
        id="origin",
    )


def _facts(caption: str, facts: Mapping[str, Any]) -> Markup:
    return table(caption, ["what", "value"], [[_words(name), _value(value)] for name, value in facts.items()])


def _words(name: str) -> str:
    """A key of a record as people write it; a sentence stays as it is."""
    return name if " " in name else name.replace("_", " ")


def _value(value: object) -> str:
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False) if value else "none"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else f"{value}"
