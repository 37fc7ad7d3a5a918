"""A comparison of controllers as a page: a chart with confidence bands, and a table, a measure."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nas import words
from nas.report.charts import RUNS, chart
from nas.report.page import Html, page, paragraph, section, table, tag

if TYPE_CHECKING:
    from nas.compare import Comparison

MEANINGS = {
    "regret": "How far the best {score} so far is from the best there is; lower is better.",
    "hypervolume": "The front so far above a reference a tenth worse than the true front, as a "
    "share of that front's volume; higher is better.",
}
OTHERWISE = "What the best design so far reaches in a final training."


def page_of(comparison: Comparison, preset: str) -> str:
    """One HTML file that opens offline."""
    from nas.compare import band

    first = next(iter(comparison.curves.values()))
    n_seeds = len(next(iter(first.values())))
    truth = "known from all designs" if comparison.exact else "the best that any search here found"
    parts = []
    for measure, each in comparison.curves.items():
        heads, *rows = comparison.lines(measure)
        bands = {label: band(values) for label, values in each.items()}
        meaning = MEANINGS.get(measure, OTHERWISE).format(score=comparison.score)
        drawn = band_chart(bands, measure, meaning, share=comparison.is_share(measure))
        parts.append(section(measure.capitalize(), drawn, table(heads, rows, words=[0])))
    head = [
        paragraph("Comparison", class_="kicker"),
        tag("h1", f"Controllers on {preset}"),
        paragraph(
            f"{words.count(n_seeds, 'seed')} each; a band is the 95 % confidence interval of the "
            f"mean. The truth is {truth}.",
            class_="lead",
        ),
    ]
    return page(f"Controllers on {preset}", tag("article", head, parts))


def band_chart(
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]], measure: str, caption: str, *, share: bool
) -> Html:
    """A mean [n] of each label against trainings, its band in the same colour, cut off where no
    value can be: below 0, or on the logarithmic axis of a regret below all that is drawn, and above
    1 of a share."""
    import plotly.graph_objects as go

    figure = go.Figure()
    logarithmic, top = measure == "regret", 1.0 if share else np.inf
    positive = [value for middle, _ in bands.values() for value in middle[middle > 0]]
    bottom = min(positive, default=1e-4) / 2 if logarithmic else 0.0 if share else -np.inf
    for i, (label, (middle, half)) in enumerate(bands.items()):
        colour, name = RUNS[i % len(RUNS)], html.escape(label)
        x = np.arange(1, len(middle) + 1)
        drawn = np.isfinite(middle) & np.isfinite(half)
        edges = np.concatenate([(middle + half)[drawn], (middle - half)[drawn][::-1]])
        edges = edges.clip(bottom, top)
        figure.add_scatter(
            x=np.concatenate([x[drawn], x[drawn][::-1]]).tolist(),
            y=edges.tolist(),
            fill="toself",
            fillcolor=colour,
            opacity=0.18,
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=name,
            showlegend=False,
        )
        figure.add_scatter(
            x=x.tolist(),
            y=[float(value) if np.isfinite(value) else None for value in middle],
            mode="lines",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 2.2, "dash": DASHES[i // len(RUNS) % len(DASHES)]},
        )
    figure.update_layout(margin={"l": 62, "r": 10, "t": 40, "b": 54}, hovermode="x unified")
    figure.update_xaxes(title_text="trainings")
    figure.update_yaxes(
        title_text=measure,
        type="log" if logarithmic else "linear",
        tickformat="~%" if share else "~g",
    )
    return chart(figure, caption, height=430)


DASHES = ("solid", "dash", "dot")
