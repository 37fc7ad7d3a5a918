"""The report of a run, or of several side by side: one HTML file that opens anywhere, offline.

The chapters are modules of functions from `Findings`, what is read of a run, to HTML. The same run
gives the same text, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas.report import again, best, comparison, course, results
from nas.report.findings import Findings, gather
from nas.report.page import Html, page, paragraph, tag

if TYPE_CHECKING:
    from nas.run import Run

__all__ = ["report"]


def report(runs: list[Run], above: Html | None = None, script: str | None = None) -> str:
    """The page about `runs`; with more than one it begins by comparing them.

    above, script: of a page that is served, what stands above it and what keeps that up to date.
    """
    found = [gather(run) for run in runs]
    title = f"Search report: {', '.join(each.name for each in found)}"
    if len(found) == 1:
        return page(title, above, tag("article", chapters(found[0])), script=script)
    return page(
        title,
        above,
        tag("article", comparison.chapter(found)),
        [tag("article", chapters(each), id=f"run-{i}") for i, each in enumerate(found, start=1)],
        script=script,
    )


def chapters(found: Findings) -> list[Html]:
    """The report of one run; what needs a design is left out where there is none."""
    head = [
        paragraph("Search report", class_="kicker"),
        tag("h1", found.name),
        paragraph(results.summary(found), class_="lead"),
    ]
    tail = [course.chapter(found), again.chapter(found)]
    if not found.designs:
        return head + tail
    return [
        *head,
        results.key_figures(found),
        results.front(found),
        best.chapter(found),
        results.leaderboard(found),
        *tail,
    ]
