"""The interactive charts of the report, by Plotly; each is its data beside an empty place."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nas import pareto, words
from nas.report import svg
from nas.report.page import Html, tag

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

    from nas.report.findings import Findings

RED, RULE = "#c2352b", "#e6eaee"
RUNS = (svg.BLUE, "#d07a1f", "#2f8f6b", "#8265ad", "#c2352b", "#7a6a53")  # a colour a run
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"


def chart(figure: go.Figure, caption: str, *, height: int) -> Html:
    """The place of a figure and its data, which the page's script draws when it is opened."""
    figure.update_layout(
        template="none",
        height=height,
        font={"family": FONT, "size": 13, "color": svg.INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={
            "align": "left",
            "bordercolor": "#9aa5b1",
            "bgcolor": "#ffffff",
            "font": {"family": FONT, "size": 12.5, "color": svg.INK},
        },
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
    )
    titles = {"font": {"size": 13, "color": svg.QUIET}, "standoff": 10}
    figure.update_xaxes(gridcolor=RULE, zeroline=False, linecolor=svg.QUIET, ticks="outside")
    figure.update_yaxes(gridcolor=RULE, zeroline=False)
    figure.for_each_xaxis(lambda axis: axis.update(title=titles))
    figure.for_each_yaxis(lambda axis: axis.update(title=titles))
    data = figure.to_json().replace("<", "\\u003c")  # so that nothing in it can end its element
    return tag(
        "figure",
        tag("div", style=f"height:{height}px"),
        tag("script", Html(data), type="application/json"),
        tag("figcaption", caption),
        class_="chart",
    )


def front_chart(found: Findings) -> Html:
    """Every row of a leaderboard: the first goal against the second, the third as colour, the
    front's line."""
    import plotly.graph_objects as go

    board, goals = found.board, found.run.front.goals
    y, x, *rest = (goal.removeprefix("-") for goal in goals)
    hovers = np.array([_hover(found, i) for i in range(len(board))])
    figure = go.Figure(_front_line(board, goals, svg.INK, "front"))
    shades = np.log10(np.maximum(board[rest[0]].to_numpy(float), 1e-30)) if rest else None
    looks = {
        "sweep": ("found by the sweep", {"symbol": "diamond", "size": 8}),
        "search": (
            "as the search proposed it",
            {"symbol": "circle", "size": 10, "line": {"width": 1.3, "color": svg.INK}},
        ),
    }
    for how, (name, marker) in looks.items():
        chosen = (board["found"] == how).to_numpy()
        if not chosen.any():
            continue
        colour = {"color": "#9fb8b0"}
        shade = {"color": shades[chosen].tolist(), "coloraxis": "coloraxis"} if rest else colour
        figure.add_scatter(
            x=board[x][chosen].tolist(),
            y=board[y][chosen].tolist(),
            mode="markers",
            name=name,
            marker={**marker, **shade},
            hovertext=hovers[chosen].tolist(),
            hoverinfo="text",
            legendgroup=how,
            showlegend=False,
        )
        # in the legend the shape alone: a shade would say something of the third goal
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=name, marker={**marker, **colour},
            legendgroup=how,
        )  # fmt: skip
    best = board.iloc[0]
    figure.add_scatter(
        x=[best[x]],
        y=[best[y]],
        mode="markers",
        name="best design",
        marker={"symbol": "circle-open", "size": 19, "color": RED, "line": {"width": 2.5}},
        hoverinfo="skip",
    )
    figure.update_layout(margin={"l": 62, "r": 10, "t": 40, "b": 54}, hovermode="closest")
    if rest:
        levels = _ticks(10 ** shades.min(), 10 ** shades.max())
        per_image = f" per {found.run.evaluator.example}" if rest[0] == "energy_j" else ""
        figure.update_layout(
            coloraxis={
                "colorscale": "Viridis",
                "reversescale": goals[2].startswith("-"),
                "colorbar": {
                    "title": {
                        "text": words.label(rest[0]) + per_image,
                        "side": "right",
                        "font": {"size": 13},
                    },
                    "tickvals": np.log10(levels).tolist(),
                    "ticktext": [words.round_value(rest[0], level) for level in levels],
                    "thickness": 12,
                    "outlinewidth": 0,
                },
            }
        )
    _front_axes(figure, goals, board[x], board[y])
    third = f", by its {words.label(rest[0])}" if rest else ""
    beside = f"; a design below it can still be on the front{third}" if rest else ""
    return chart(
        figure,
        f"{words.label(y).capitalize()} in the search against {axis(x)}. The line is the best "
        f"{words.label(y)} within each {words.label(x)}{beside}. Point at a design to "
        "see all of it; drag to enlarge, double-click to go back.",
        height=500,
    )


def fronts_chart(
    boards: Sequence[pandas.DataFrame], names: Sequence[str], goals: Sequence[str]
) -> Html:
    """The fronts of several runs in one chart, a colour each."""
    import plotly.graph_objects as go

    y, x, *_ = metrics = [goal.removeprefix("-") for goal in goals]
    figure = go.Figure()
    for i, (board, name) in enumerate(zip(boards, names, strict=True)):
        colour = RUNS[i % len(RUNS)]
        figure.add_trace(_front_line(board, goals, colour, html.escape(name)))
        on_front = board[board["front"]]
        figure.add_scatter(
            x=on_front[x].tolist(),
            y=on_front[y].tolist(),
            mode="markers",
            showlegend=False,
            marker={"size": 7, "color": colour},
            hovertext=[
                f"{html.escape(name)}, trial {row['trial']}<br>{_figures(row, metrics)}"
                for _, row in on_front.iterrows()
            ],
            hoverinfo="text",
        )
    figure.update_layout(margin={"l": 62, "r": 10, "t": 40, "b": 54}, hovermode="closest")
    joined = [np.concatenate([board[metric] for board in boards]) for metric in (x, y)]
    _front_axes(figure, goals, *joined)
    return chart(
        figure,
        f"The fronts in {words.listed([words.label(metric) for metric in metrics])}; a line is a "
        f"run's best {words.label(y)} within each {words.label(x)}.",
        height=460,
    )


def progress_chart(
    ids: Sequence[int],
    values: np.ndarray | None,
    best: np.ndarray,
    title: str,
    caption: str,
    *,
    tickformat: str,
) -> Html:
    """A value of each trial as points, unless None, and the best so far as a line."""
    import plotly.graph_objects as go

    figure = go.Figure()
    if values is not None:
        figure.add_scatter(
            x=list(ids),
            y=_plain(values),
            mode="markers",
            name="trial",
            marker={"size": 6, "color": "#8fb4da"},
        )
    figure.add_scatter(
        x=list(ids),
        y=_plain(best),
        mode="lines",
        name="best so far",
        line={"shape": "hv", "color": svg.BLUE, "width": 2.2},
    )
    figure.update_layout(
        title={"text": title, "x": 0, "font": {"size": 14}, "xref": "paper"},
        margin={"l": 52, "r": 8, "t": 34, "b": 46},
        showlegend=False,
        hovermode="x unified",
    )
    figure.update_xaxes(title_text="trial", tickformat="d")
    figure.update_yaxes(tickformat=tickformat)
    return chart(figure, caption, height=290)


def _front_line(
    board: pandas.DataFrame, goals: Sequence[str], colour: str, name: str
) -> go.Scatter:
    """The best of the first goal within each value of the second, as steps to the edge of the
    designs."""
    import plotly.graph_objects as go

    points = board[[goal.removeprefix("-") for goal in goals[1::-1]]].to_numpy(float)
    signs = np.array([-1.0 if goal.startswith("-") else 1.0 for goal in goals[1::-1]])
    line = np.unique(points[pareto.front(points * signs)] * -signs, axis=0) * -signs  # best x first
    worst = (points[:, 0] * signs[0]).min() * signs[0]
    line = np.vstack([line, [worst, line[-1, 1]]])
    return go.Scatter(
        x=line[:, 0].tolist(),
        y=line[:, 1].tolist(),
        mode="lines",
        name=name,
        line={"shape": "hv", "color": colour, "width": 1.5},
        hoverinfo="skip",
    )


def axis(metric: str) -> str:
    """What an axis says of a metric."""
    return "latency of one batch" if metric == "latency_s" else words.label(metric)


def _front_axes(figure: go.Figure, goals: Sequence[str], xs, ys) -> None:
    """Shares and what may be 0 on even scales, costs on logarithmic ones."""
    y, x = (goal.removeprefix("-") for goal in goals[:2])
    for name, values, update in ((x, xs, figure.update_xaxes), (y, ys, figure.update_yaxes)):
        low, high = float(np.min(values)), float(np.max(values))
        if words.is_share(name):
            update(title_text=axis(name), tickformat=".0%")
        elif low <= 0:
            update(title_text=axis(name))
        else:
            low, high = low / 1.25, high * 1.25
            ticks = _ticks(low, high)
            update(
                type="log",
                range=[math.log10(low), math.log10(high)],
                title_text=axis(name),
                tickvals=ticks,
                ticktext=[words.round_value(name, tick) for tick in ticks],
            )


def _ticks(low: float, high: float) -> list[float]:
    """Round values of a logarithmic scale: 1, 2, 5 of each decade, or 1 alone where many; within
    less than a factor of 6, multiples of a round step."""
    if low < high < 6 * low:
        size = 10 ** math.floor(math.log10(high - low))
        step = next(n * size for n in (0.1, 0.2, 0.5, 1, 2) if high - low <= 6 * n * size)
        multiples = range(math.ceil(low / step), math.floor(high / step) + 1)
        return [float(f"{n * step:.12g}") for n in multiples]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if math.log10(high / low) > 3.5 else (1, 2, 5)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    return inside or [low]


def _hover(found: Findings, i: int) -> str:
    """The design in row i of the leaderboard as the lines of a hover text, in which Plotly reads
    tags."""
    row, choices = found.board.iloc[i], found.designs[i]
    lines = [_figures(row, found.metrics), ""]
    if found.run.sweep:
        lines[1:1] = [f"{words.percent(row['utilization'])} utilized"]
        lines.append(f"network {found.drawing.brief(choices)}")
    lines += found.drawing.detail(choices).split(", ")
    if not found.run.sweep:
        return "<br>".join([f"<b>trial {row['trial']}</b>", *map(html.escape, lines)])
    lines += [
        f"bits w/a {words.bits(choices)}",
        f"trained at batch {choices['train.batch']}, served at {choices['serve.batch']}",
        "",
        words.array(choices),
        *words.sizes(choices),
    ]
    how = "proposed" if row["found"] == "search" else "swept"
    return "<br>".join([f"<b>trial {row['trial']}</b>, {how}", *map(html.escape, lines)])


def _figures(row: pandas.Series, metrics: Sequence[str]) -> str:
    return ", ".join(words.value(metric, row[metric]) for metric in metrics)


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON can hold them: None, a gap, where one is not finite."""
    return [float(value) if math.isfinite(value) else None for value in values]
