"""Networks drawn: the graph of a cell, its stages in a table, and training curves, as inline SVG.

A family of networks appears here once, in `FAMILIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nas import words
from nas.report import recurrent
from nas.report.page import Html, lines, table, tag
from nas.report.svg import FAINT, QUIET, Point, arc, label, node, text
from nas.words import TIMES
from search_spaces.cell import EDGES, N_NODES
from search_spaces.precision import GROUPS, precisions
from search_spaces.space import Choices

OPERATIONS = {  # of an edge -> colour, and how it is called
    "conv_3x3": ("#1f4f8f", f"3{TIMES}3 conv"),
    "conv_1x1": ("#4d94d0", f"1{TIMES}1 conv"),
    "avg_pool_3x3": ("#cf8a26", f"3{TIMES}3 avg pool"),
    "skip": ("#7d8895", "skip"),
}
NODES = ("in", "1", "2", "out")
BENDS = {(0, 2): -0.62, (1, 3): 0.62, (0, 3): -1.18}  # of an arc, in distances between nodes
WIDTH, HEIGHT, LEFT, FOOT = 170, 96, 30, 16  # of a small chart, and the room for its labels


class Drawing(NamedTuple):
    """How a family of networks is shown.

    brief: a design in a few words. detail: its operations in words, parted by ", ". icon: a picture
    for a table's cell, whose colours key explains. figure: the network drawn, with its caption.
    stages: its parts with their sizes and bits, as a table.
    """

    brief: Callable[[Choices], str]
    detail: Callable[[Choices], str]
    icon: Callable[[Choices], Html]
    key: Callable[[], Html]
    figure: Callable[[Choices], Html]
    stages: Callable[[Choices], Html]


def cell_brief(choices: Choices) -> str:
    """`2 x 16 @ 16`: cells a stage, channels of the first stage, resolution."""
    return f"{choices['cell.depth']} {TIMES} {choices['cell.width']} @ {choices['cell.resolution']}"


def cell_live(choices: Choices) -> set[tuple[int, int]]:
    """The edges that carry something from the cell's input to its output; others are not built."""
    edges = {edge for edge in EDGES if choices["cell.edge{}{}".format(*edge)] != "none"}
    reached, needed = {0}, {N_NODES - 1}
    for i, j in sorted(edges):
        if i in reached:
            reached.add(j)
    for i, j in sorted(edges, reverse=True):
        if j in needed:
            needed.add(i)
    return {(i, j) for i, j in edges if i in reached and j in needed}


def ends_of(at: Sequence[Point], edge: tuple[int, int]) -> tuple[Point, Point]:
    """Where an edge begins and ends."""
    return at[edge[0]], at[edge[1]]


def bend(at: Sequence[Point], edge: tuple[int, int]) -> float:
    """How far the control point of an edge's arc lies below its nodes."""
    return BENDS.get(edge, 0.0) * (at[1][0] - at[0][0])


def cell_graph(choices: Choices) -> Html:
    """The cell: four nodes, and every edge that is built with the name of its operation."""
    gap, radius = 165.0, 17.0
    at = [(30 + gap * i, 118.0) for i in range(N_NODES)]
    alive = cell_live(choices)
    idle = [
        arc(ends_of(at, edge), radius, FAINT, 1.5, bend=bend(at, edge), dash="2 5")[0]
        for edge in EDGES
        if edge not in alive
    ]
    arcs, labels = [], []
    for edge in sorted(alive):
        colour, name = OPERATIONS[choices["cell.edge{}{}".format(*edge)]]
        line, middle = arc(ends_of(at, edge), radius, colour, 2.5, bend=bend(at, edge), arrow=True)
        arcs.append(line)
        labels.append(label(middle, name, colour))
    ends = {end for edge in alive for end in edge}
    nodes = [node(at[i], radius, NODES[i], i in ends) for i in range(N_NODES)]
    title = tag("title", "The cell: " + cell_words(choices))
    return tag("svg", title, idle, arcs, nodes, labels, viewBox="0 0 555 186", role="img")


def cell_icon(choices: Choices) -> Html:
    """The same, small: colours without names."""
    at = [(4 + 18.0 * i, 15.0) for i in range(N_NODES)]
    alive = cell_live(choices)
    arcs = [
        arc(
            ends_of(at, edge),
            0,
            OPERATIONS[op][0],
            1.2 if op == "skip" else 2.6,
            bend=bend(at, edge),
        )[0]
        for edge in sorted(alive)
        for op in [choices["cell.edge{}{}".format(*edge)]]
    ]
    dots = [tag("circle", cx=x, cy=y, r=2, fill=QUIET) for x, y in at]
    title = tag("title", cell_words(choices))
    return tag("svg", title, arcs, dots, viewBox="0 0 62 26", width=62, height=26, role="img")


def cell_key() -> Html:
    """What a network's few words and the colours of its edges mean."""
    swatches = [
        tag("li", f"network: cells a stage {TIMES} channels of the first stage @ resolution")
    ] + [
        tag("li", tag("i", style=f"background:{colour}"), name)
        for colour, name in OPERATIONS.values()
    ]
    return tag("ul", swatches, class_="legend")


def cell_words(choices: Choices) -> str:
    """The edges that are built: `in to 1: skip, 1 to out: 3x3 conv`."""
    return ", ".join(
        f"{NODES[i]} to {NODES[j]}: {OPERATIONS[choices[f'cell.edge{i}{j}']][1]}"
        for i, j in sorted(cell_live(choices))
    )


def cell_figure(choices: Choices) -> Html:
    """The graph with its caption."""
    depth = choices["cell.depth"]
    caption = (
        f"The cell, {depth} in each of the three stages. A node is the sum of what enters it; "
        "dotted edges are not built. A residual block halves the resolution and doubles the "
        "channels between stages."
    )
    graph = tag("div", cell_graph(choices), class_="scroll graph")
    return tag("figure", graph, tag("figcaption", caption))


def cell_stages(choices: Choices) -> Html:
    """Channels, feature map and bits of every stage."""
    width, resolution = choices["cell.width"], choices["cell.resolution"]
    rows = []
    for stage, (name, precision) in enumerate(zip(GROUPS, precisions(choices), strict=True)):
        size = math.ceil(resolution / 2**stage)
        inner = name != GROUPS[-1]
        rows.append(
            (
                words.group(name),
                width << stage if inner else words.NONE,
                f"{size} {TIMES} {size}" if inner else words.NONE,
                precision.weights,
                precision.activations,
            )
        )
    heads = (
        "",
        "channels",
        "feature map",
        lines("weight", "bits"),
        lines("activation", "bits"),
    )
    return table(heads, rows, words=[0])


def plain_brief(choices: Choices) -> str:
    """The choices of a network of no family here, their names left out."""
    values = (words.decision(*pair)[1] for pair in network_choices(choices).items())
    return " ".join(values)


def plain_detail(choices: Choices) -> str:
    """The same with their names."""
    return ", ".join(" ".join(words.decision(*p)) for p in network_choices(choices).items())


def network_choices(choices: Choices) -> Choices:
    """The choices without those of bits, batches and accelerator."""
    others = ("bits.", "train.", "serve.", "hw.")
    return {name: value for name, value in choices.items() if not name.startswith(others)}


def plain_stages(choices: Choices) -> Html:
    """A row a choice."""
    rows = [words.decision(*pair) for pair in network_choices(choices).items()]
    return table(("decision", "choice"), rows, words=[0, 1])


def nothing(*_: Choices) -> Html:
    return Html("")


PLAIN = Drawing(plain_brief, plain_detail, nothing, nothing, nothing, plain_stages)
FAMILIES = {  # a family that is not here is shown by its choices alone
    "cell": Drawing(cell_brief, cell_words, cell_icon, cell_key, cell_figure, cell_stages),
    "recurrent": Drawing(
        recurrent.brief,
        recurrent.detail,
        recurrent.icon,
        recurrent.key,
        recurrent.figure,
        recurrent.stages,
    ),
}


class Frame(NamedTuple):
    """The common scale of small charts: epochs from 0, values from low to high, written by a
    format."""

    longest: float
    low: float
    high: float
    form: str = ".0%"

    def place(self, point: Point) -> Point:
        """Where (epoch, value) lies in the picture."""
        x = LEFT + (WIDTH - LEFT - 6) * point[0] / self.longest
        share = (point[1] - self.low) / (self.high - self.low)
        return round(x, 1), round(HEIGHT - FOOT - (HEIGHT - FOOT - 6) * share, 1)


def curves(lines: Sequence[tuple[Sequence[Point], str]], frame: Frame) -> Html:
    """A small chart of lines of (epoch, value), each with its colour; empty ones are none."""
    marks = []
    for level in (frame.low, frame.high):
        _, y = frame.place((0, level))
        marks.append(tag("line", x1=LEFT, x2=WIDTH, y1=y, y2=y, stroke=FAINT))
        marks.append(text((LEFT - 5, y + 3.5), f"{level:{frame.form}}", anchor="end", size=10))
    epochs = f"{frame.longest:.0f} epochs"
    marks.append(text((WIDTH, HEIGHT - 3), epochs, anchor="end", size=10))
    for points, colour in lines:
        if points:
            places = [frame.place(point) for point in points]
            path = "M" + " L".join(f"{x} {y}" for x, y in places)
            marks.append(tag("path", d=path, fill="none", stroke=colour, stroke_width=1.8))
            marks.append(tag("circle", cx=places[-1][0], cy=places[-1][1], r=2.4, fill=colour))
    return tag("svg", marks, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
