"""The interactive charts of the report, by Plotly; each is its data beside an empty place."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nas import pareto
from nas.report import drawing, words
from nas.report.page import Html, tag
from search_spaces.space import Choices

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

RED, RULE = "#c2352b", "#e6eaee"
RUNS = (drawing.BLUE, "#d07a1f", "#2f8f6b", "#8265ad", "#c2352b", "#7a6a53")  # a colour a run
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"


def chart(figure: go.Figure, caption: str, *, height: int) -> Html:
    """The place of a figure and its data, which the page's script draws when it is opened."""
    figure.update_layout(
        template="none",
        height=height,
        font={"family": FONT, "size": 13, "color": drawing.INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={
            "align": "left",
            "bordercolor": "#9aa5b1",
            "bgcolor": "#ffffff",
            "font": {"family": FONT, "size": 12.5, "color": drawing.INK},
        },
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
    )
    titles = {"font": {"size": 13, "color": drawing.QUIET}, "standoff": 10}
    figure.update_xaxes(gridcolor=RULE, zeroline=False, linecolor=drawing.QUIET, ticks="outside")
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


def front_chart(board: pandas.DataFrame, designs: Sequence[Choices], family: str) -> Html:
    """Every row of a leaderboard: accuracy against latency, energy as colour, the front's line."""
    import plotly.graph_objects as go

    hovers = np.array(
        [
            _hover(row, choices, family)
            for (_, row), choices in zip(board.iterrows(), designs, strict=True)
        ]
    )
    shades = np.log10(board["energy_j"].to_numpy(float))
    figure = go.Figure(_front_line(board, drawing.INK, "front"))
    looks = {
        "sweep": ("found by the sweep", {"symbol": "diamond", "size": 8}),
        "search": (
            "as the search proposed it",
            {"symbol": "circle", "size": 10, "line": {"width": 1.3, "color": drawing.INK}},
        ),
    }
    for found, (name, marker) in looks.items():
        chosen = (board["found"] == found).to_numpy()
        figure.add_scatter(
            x=board["latency_s"][chosen].tolist(),
            y=board["accuracy"][chosen].tolist(),
            mode="markers",
            name=name,
            marker={**marker, "color": shades[chosen].tolist(), "coloraxis": "coloraxis"},
            hovertext=hovers[chosen].tolist(),
            hoverinfo="text",
            legendgroup=found,
            showlegend=False,
        )
        # in the legend the shape alone: a shade would say something of energy
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=name,
            marker={**marker, "color": "#9fb8b0"},
            legendgroup=found,
        )
    best = board.iloc[0]
    figure.add_scatter(
        x=[best["latency_s"]],
        y=[best["accuracy"]],
        mode="markers",
        name="best design",
        marker={"symbol": "circle-open", "size": 19, "color": RED, "line": {"width": 2.5}},
        hoverinfo="skip",
    )
    levels = _ticks(10 ** shades.min(), 10 ** shades.max())
    figure.update_layout(
        margin={"l": 62, "r": 10, "t": 40, "b": 54},
        hovermode="closest",
        coloraxis={
            "colorscale": "Viridis",
            "reversescale": True,
            "colorbar": {
                "title": {"text": "energy per image", "side": "right", "font": {"size": 13}},
                "tickvals": np.log10(levels).tolist(),
                "ticktext": [words.exact(level, "J") for level in levels],
                "thickness": 12,
                "outlinewidth": 0,
            },
        },
    )
    _front_axes(figure, board["latency_s"])
    return chart(
        figure,
        "Validation accuracy in the search against the latency of one served batch. The line is "
        "the best accuracy within each latency; a design below it can still be on the front, "
        "by its energy. Point at a design to see all of it; drag to enlarge, double-click to go "
        "back.",
        height=500,
    )


def fronts_chart(boards: Sequence[pandas.DataFrame], names: Sequence[str]) -> Html:
    """The fronts of several runs in one chart, a colour each."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, (board, name) in enumerate(zip(boards, names, strict=True)):
        colour = RUNS[i % len(RUNS)]
        figure.add_trace(_front_line(board, colour, html.escape(name)))
        on_front = board[board["front"]]
        figure.add_scatter(
            x=on_front["latency_s"].tolist(),
            y=on_front["accuracy"].tolist(),
            mode="markers",
            showlegend=False,
            marker={"size": 7, "color": colour},
            hovertext=[
                f"{html.escape(name)}, trial {row['trial']}<br>{_figures(row)}"
                for _, row in on_front.iterrows()
            ],
            hoverinfo="text",
        )
    figure.update_layout(margin={"l": 62, "r": 10, "t": 40, "b": 54}, hovermode="closest")
    _front_axes(figure, np.concatenate([board["latency_s"] for board in boards]))
    return chart(
        figure,
        "The fronts in accuracy, latency and energy; a line is a run's best accuracy within each "
        "latency.",
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
        line={"shape": "hv", "color": drawing.BLUE, "width": 2.2},
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


def _front_line(board: pandas.DataFrame, colour: str, name: str) -> go.Scatter:
    """The best accuracy within each latency, as steps to the right edge of the designs."""
    import plotly.graph_objects as go

    points = board[["latency_s", "accuracy"]].to_numpy(float)
    line = points[pareto.front(points * [-1, 1])]
    line = np.unique(line, axis=0)
    line = np.vstack([line, [points[:, 0].max(), line[-1, 1]]])
    return go.Scatter(
        x=line[:, 0].tolist(),
        y=line[:, 1].tolist(),
        mode="lines",
        name=name,
        line={"shape": "hv", "color": colour, "width": 1.5},
        hoverinfo="skip",
    )


def _front_axes(figure: go.Figure, latencies) -> None:
    low, high = float(np.min(latencies)) / 1.25, float(np.max(latencies)) * 1.25
    ticks = _ticks(low, high)
    figure.update_xaxes(
        type="log",
        range=[math.log10(low), math.log10(high)],
        title_text="latency of one batch",
        tickvals=ticks,
        ticktext=[words.exact(tick, "s") for tick in ticks],
    )
    figure.update_yaxes(title_text="accuracy", tickformat=".0%")


def _ticks(low: float, high: float) -> list[float]:
    """Round values of a logarithmic scale: 1, 2, 5 of each decade, or 1 alone where many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if math.log10(high / low) > 2.5 else (1, 2, 5)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    return inside or [low]


def _hover(row: pandas.Series, choices: Choices, family: str) -> str:
    """A whole design as the lines of a hover text, in which Plotly reads tags."""
    drawn = drawing.FAMILIES[family]
    lines = [
        _figures(row),
        f"{words.number(row['area_mm2'])} mm², {words.percent(row['utilization'])} utilized",
        "",
        f"network {drawn.brief(choices)}",
        *drawn.detail(choices).split(", "),
        f"bits w/a {words.bits(choices)}",
        f"trained at batch {choices['train.batch']}, served at {choices['serve.batch']}",
        "",
        f"{words.array(choices)}, {words.rates(choices)}",
        words.memories(choices),
    ]
    how = "proposed" if row["found"] == "search" else "swept"
    return "<br>".join([f"<b>trial {row['trial']}</b>, {how}", *map(html.escape, lines)])


def _figures(row: pandas.Series) -> str:
    return (
        f"{words.percent(row['accuracy'])}, {words.quantity(row['latency_s'], 's')}, "
        f"{words.quantity(row['energy_j'], 'J')}"
    )


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON can hold them: None, a gap, where one is not finite."""
    return [float(value) if math.isfinite(value) else None for value in values]
