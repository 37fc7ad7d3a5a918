"""How to get the same run again: commands, settings, versions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from nas.report.findings import Findings
from nas.report.page import Html, facts, fold, paragraph, section, table, tag
from search_spaces.space import Decision


def chapter(found: Findings) -> Html:
    """Commands, and behind folds everything that was set."""
    run, config = found.run, found.run.config
    rows = [
        ("Seed", config["seed"]),
        ("Trials", f"{config['trials']:,}, at most {config['in_flight']} open at a time"),
        ("Evaluator", component(config["evaluator"])),
        ("Controller", component(config["controller"])),
        ("Reward", component(config["reward"])),
        ("Constraints", ", ".join(map(str, run.constraints)) or "none"),
        ("Versions", plain(run.table.get("versions", {}))),
    ]
    return section(
        "How to get it again",
        tag("pre", commands(found)),
        paragraph(
            "The first command searches again from the same configuration and seed. Other versions "
            "of the libraries, or another processor, can round differently and lead elsewhere.",
            class_="note",
        ),
        facts(rows),
        fold(f"The space: {len(run.space)} decisions", space_table(found)),
        fold("All settings: config.toml", tag("pre", run.dir.config.read_text("utf-8"))),
    )


def commands(found: Findings) -> str:
    """The same search in a new directory; this page; the best design as a Keras model."""
    path, config = str(found.run.dir.path), str(found.run.dir.config)
    lines = [
        f"nas search {shlex.quote(config)} --run {shlex.quote(path + '-again')}",
        f"nas report {shlex.quote(path)} --html report.html",
    ]
    if found.designs and found.best_final and found.run.sweep:
        lines.append(f"nas export {shlex.quote(path)} --best --to best.keras")
    return "\n".join(lines)


def component(settings: Mapping) -> str:
    """A component and its options: `proxy: dataset cifar10, epochs 3`."""
    options = {
        key: value
        for key, value in settings.items()
        if key not in ("name", "patterns") and value not in ("", [], {})
    }
    return f"{settings['name']}: {plain(options)}" if options else settings["name"]


def plain(value: Any) -> str:
    """A value of a configuration as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(each)}" for key, each in value.items())
    if isinstance(value, list):
        return (" / " if value and isinstance(value[0], Mapping) else ", ").join(map(plain, value))
    return str(value)


def space_table(found: Findings) -> Html:
    """Every decision with its values; the best design's in bold."""
    best = found.designs[0] if found.designs else {}

    def values(decision: Decision) -> list[Html]:
        return [
            tag("b" if best.get(decision.name) == value else "span", value, class_="value")
            for value in decision.values
        ]

    rows = [(decision.name, values(decision)) for decision in found.run.space.decisions]
    return table(("decision", "values; the best design's in bold"), rows, words=[0, 1])
