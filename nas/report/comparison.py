"""Several runs side by side: the best design of each, and their fronts in one picture."""

from __future__ import annotations

import numpy as np

from nas import pareto, words
from nas.report import again, charts, results
from nas.report.findings import Findings
from nas.report.page import Html, lines, paragraph, section, tag


def chapter(found: list[Findings]) -> list[Html | None]:
    """What comes before the runs' own reports."""
    able = [each for each in found if each.designs]
    boards, names = [each.board for each in able], [each.name for each in able]
    goals = common_goals(found)
    links = [
        tag("li", tag("a", each.name, href=f"#run-{i}")) for i, each in enumerate(found, start=1)
    ]
    return [
        paragraph("Search report", class_="kicker"),
        tag("h1", f"{len(found)} runs side by side"),
        tag("nav", tag("ul", links)),
        section("The best of each", best_table(found), caveat(found)),
        section("The fronts", charts.fronts_chart(boards, names, goals))
        if able and len(goals) > 1
        else None,
    ]


def best_table(found: list[Findings]) -> Html:
    """A row a run: its best design, and how many on the front over all runs are its own."""
    metrics = [metric for each in found for metric in each.metrics]
    units = results.units_of([each.board.iloc[0] for each in found if each.designs], metrics)
    heads = {"run": "run", "joint": lines("on the", "joint front")}
    for each in found:
        heads |= results.headings(each, units)
    for name in ("rank", "batch", "found", "reward"):
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


def common_goals(found: list[Findings]) -> list[str]:
    """What the rewards of all runs are made of, in the order of the first."""
    first, *others = (each.run.front.goals for each in found)
    return [goal for goal in first if all(goal in each for each in others)]


def joint_front(found: list[Findings]) -> list[int]:
    """How many designs of each run are on the front over all runs, in the goals that all share."""
    goals = common_goals(found)
    if not goals:
        return [0] * len(found)
    signs = np.array([-1.0 if goal.startswith("-") else 1.0 for goal in goals])
    names = [goal.removeprefix("-") for goal in goals]
    points = [each.board[names].to_numpy(float) * signs for each in found]
    on_front = pareto.front(np.concatenate(points))
    ends = np.cumsum([len(part) for part in points])[:-1]
    return [int(part.sum()) for part in np.split(on_front, ends)]
