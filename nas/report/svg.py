"""Pieces of inline SVG pictures: nodes, arcs with heads, labels."""

from __future__ import annotations

import math

from nas.report.page import Html, tag

INK, QUIET, FAINT, PAPER = "#1d2530", "#5d6876", "#dde2e8", "#ffffff"
BLUE = "#1d5fa8"

Point = tuple[float, float]


def arc(
    ends: tuple[Point, Point],
    radius: float,
    colour: str,
    thick: float,
    *,
    bend: float = 0.0,
    dash: str | None = None,
    arrow: bool = False,
) -> tuple[Html, Point]:
    """An edge from rim to rim of its nodes, and its middle; bend: how far its control point lies
    below the middle of the ends."""
    (x0, y0), (x1, y1) = ends
    control = (x0 + x1) / 2, (y0 + y1) / 2 + bend
    slope = math.atan2(control[1] - y0, control[0] - x0)
    back = math.atan2(y1 - control[1], x1 - control[0])
    reach = radius + (9 if arrow else 0)
    start = x0 + radius * math.cos(slope), y0 + radius * math.sin(slope)
    end = x1 - reach * math.cos(back), y1 - reach * math.sin(back)
    middle = (
        (start[0] + 2 * control[0] + end[0]) / 4,
        (start[1] + 2 * control[1] + end[1]) / 4,
    )
    path = "M{:.1f} {:.1f} Q{:.1f} {:.1f} {:.1f} {:.1f}".format(*start, *control, *end)
    line = tag(
        "path", d=path, fill="none", stroke=colour, stroke_width=thick, stroke_dasharray=dash
    )
    return Html(line + head(end, back, colour)) if arrow else line, middle


def head(end: Point, angle: float, colour: str) -> Html:
    """An arrow's head whose base is at `end`."""
    tip = end[0] + 9 * math.cos(angle), end[1] + 9 * math.sin(angle)
    side = 4.5 * math.sin(angle), 4.5 * math.cos(angle)
    corners = tip, (end[0] + side[0], end[1] - side[1]), (end[0] - side[0], end[1] + side[1])
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + " Z"
    return tag("path", d=path, fill=colour)


def node(at: Point, radius: float, name: str, used: bool) -> Html:
    colour = INK if used else FAINT
    ring = tag("circle", cx=at[0], cy=at[1], r=radius, fill=PAPER, stroke=colour, stroke_width=1.6)
    return Html(ring + text((at[0], at[1] + 4.5), name, colour=INK if used else QUIET))


def label(at: Point, name: str, colour: str) -> Html:
    """An operation's name on its edge, on paper that hides the line."""
    width = 6.6 * len(name) + 9
    back = tag(
        "rect",
        x=f"{at[0] - width / 2:.1f}",
        y=f"{at[1] - 9:.1f}",
        width=f"{width:.1f}",
        height=18,
        fill=PAPER,
    )
    return Html(back + text((at[0], at[1] + 4.2), name, colour=colour, size=12))


def text(
    at: Point, text: str, *, colour: str = QUIET, anchor: str = "middle", size: int = 13
) -> Html:
    return tag(
        "text",
        text,
        x=f"{at[0]:.1f}",
        y=f"{at[1]:.1f}",
        fill=colour,
        text_anchor=anchor,
        font_size=size,
    )
