"""Several runs side by side: the best design of each, and their fronts in one picture."""

from __future__ import annotations

import numpy as np

from nas import pareto
from nas.progress import FRONT
from nas.report import again, charts, results, words
from nas.report.findings import Findings
from nas.report.page import Html, lines, paragraph, section, tag


def chapter(found: list[Findings]) -> list[Html | None]:
    """What comes before the runs' own reports."""
    able = [each for each in found if each.designs]
    boards, names = [each.board for each in able], [each.name for each in able]
    links = [
        tag("li", tag("a", each.name, href=f"#run-{i}")) for i, each in enumerate(found, start=1)
    ]
    return [
        paragraph("Search report", class_="kicker"),
        tag("h1", f"{len(found)} runs side by side"),
        tag("nav", tag("ul", links)),
        section("The best of each", best_table(found), caveat(found)),
        section("The fronts", charts.fronts_chart(boards, names)) if able else None,
    ]


def best_table(found: list[Findings]) -> Html:
    """A row a run: its best design, and how many on the front over all runs are its own."""
    units = results.units_of([each.board.iloc[0] for each in found if each.designs])
    heads = {"run": "run", "joint": lines("on the", "joint front"), **results.headings(units)}
    for name in ("rank", "batch", "found"):
        del heads[name]
    rows = [
        {
            "run": each.name,
            "joint": n_front,
            **(results.cells(each, 0, units) if each.designs else {}),
        }
        for each, n_front in zip(found, joint_front(found), strict=True)
    ]
    return results.design_table(heads, rows)


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
