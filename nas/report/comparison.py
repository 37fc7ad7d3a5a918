"""Several runs side by side: the best design of each, and their fronts in one picture."""

from __future__ import annotations

import numpy as np

from nas import pareto
from nas.progress import FRONT
from nas.report import again, charts, results, words
from nas.report.findings import Findings
from nas.report.page import Html, lines, paragraph, section, table, tag


def chapter(found: list[Findings]) -> list[Html]:
    """What comes before the runs' own reports."""
    able = [each for each in found if each.designs]
    links = [
        tag("li", tag("a", each.name, href=f"#run-{i}")) for i, each in enumerate(found, start=1)
    ]
    return [
        paragraph("Search report", class_="kicker"),
        tag("h1", f"{len(found)} runs side by side"),
        tag("nav", tag("ul", links)),
        section("The best of each", best_table(found), caveat(found)),
        *([section("The fronts", fronts(able))] if able else []),
    ]


def best_table(found: list[Findings]) -> Html:
    """A row a run: its best design, and how many on the front over all runs are its own."""
    firsts = [each.board.iloc[0] for each in found if each.designs]
    units = {
        name: words.unit([row[name] for row in firsts], unit)
        for name, unit in (("latency_s", "s"), ("energy_j", "J"))
    }
    heads = [
        "run",
        "trained",
        lines("on the", "joint front"),
        "trial",
        "cell",
        "network",
        "bits w/a",
        lines("batch", "train/serve"),
        "accelerator",
        "accuracy",
        "test",
        lines("latency", units["latency_s"].name),
        lines("energy", units["energy_j"].name),
        lines("area", "mm²"),
    ]
    rows = []
    for each, n_front in zip(found, joint_front(found), strict=True):
        line = [each.name, len(each.trained), n_front]
        if each.designs:
            _, *design, _, accuracy, test, latency, energy, area = results.board_line(
                each, 0, units
            )
            line += [*design, accuracy, test, latency, energy, area]
        rows.append(line + [words.NONE] * (len(heads) - len(line)))
    return table(heads, rows, words=[0, 4, 5, 6, 7, 8])


def caveat(found: list[Findings]) -> Html | None:
    """A warning where the runs do not measure accuracy in the same way."""
    trainings = sorted({again.component(each.run.config["evaluator"]) for each in found})
    if len(trainings) == 1:
        return None
    return paragraph(
        f"Accuracies do not compare directly: the runs train in different ways, "
        f"{words.listed([f'“{training}”' for training in trainings])}.",
        class_="note",
    )


def joint_front(found: list[Findings]) -> list[int]:
    """How many designs of each run are on the front over all runs."""
    points = [each.board[list(FRONT)].to_numpy(float) * [1, -1, -1] for each in found]
    on_front = pareto.front(np.concatenate(points))
    ends = np.cumsum([len(part) for part in points])[:-1]
    return [int(part.sum()) for part in np.split(on_front, ends)]


def fronts(able: list[Findings]) -> Html:
    return charts.fronts_chart([each.board for each in able], [each.name for each in able])
