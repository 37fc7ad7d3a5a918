"""Language models drawn: the graph of a recurrent cell, and its sizes and bits in a table."""

from __future__ import annotations

import math

from nas import words
from nas.report.page import Html, lines, table, tag
from nas.report.svg import INK, PAPER, QUIET, Point, arc, text
from nas.words import TIMES
from search_spaces import recurrent
from search_spaces.precision import groups, precisions
from search_spaces.space import Choices

COLOURS = {  # of a node's function
    "tanh": "#1f4f8f",
    "relu": "#b4472c",
    "sigmoid": "#4b8b4a",
    "identity": "#7d8895",
    "add": "#cf8a26",
    "multiply": "#8a4fa3",
}
SIGNS = {"add": "+", "multiply": TIMES}
GAP, RADIUS = 74.0, 17.0  # between nodes, and of one, in a picture
KNOWN = {"lstm": "LSTM", "gru": "GRU"}

Node = tuple[Point, str, str]  # where, what is written in it, its colour
Edge = tuple[int, int]


def brief(choices: Choices) -> str:
    """`dag 8, 128 units, 96 wide, cache of 256`."""
    kind = choices["rnn.cell"]
    size = {"dag": "dag.nodes", "tree": "tree.leaves"}.get(kind)
    name = f"{kind} {choices[size]}" if size else KNOWN[kind]
    n_layers = choices.get("rnn.layers", 1)
    deep = f"{n_layers} {TIMES} " if n_layers > 1 else ""
    said = [f"{deep}{name}", f"{choices['rnn.units']} units", f"{choices['embed.width']} wide"]
    if (memory := choices.get("memory.kind", "none")) != "none":
        kind = memory if memory == "cache" else f"{memory} memory"
        said.append(f"{kind} of {choices['memory.slots']}")
    if (n_experts := choices.get("experts.n", 1)) > 1:
        said.append(f"{n_experts} experts")
    return ", ".join(said)


def detail(choices: Choices) -> str:
    """Its nodes in words, parted by ", "."""
    cell = recurrent.cell(choices)
    if isinstance(cell, recurrent.Dag):
        return ", ".join(
            [f"node 0: {cell.first}"]
            + [f"{j} to {i}: {name}" for i, (j, name) in enumerate(cell.nodes, start=1)]
        )
    if isinstance(cell, recurrent.Tree):
        named = [("leaf", cell.leaves), ("inner node", cell.inner), ("memory", [cell.memory])]
        return ", ".join(
            f"{kind} {i}: {how} then {name}"
            for kind, some in named
            for i, (how, name) in enumerate(some)
        )
    return KNOWN[choices["rnn.cell"]]


def graph(choices: Choices) -> tuple[list[Node], list[Edge]]:
    """Nodes in place and the edges between them; the first is the input, the last the output."""
    cell = recurrent.cell(choices)
    if isinstance(cell, recurrent.Dag):
        return dag_graph(cell)
    if isinstance(cell, recurrent.Tree):
        return tree_graph(cell)
    name = KNOWN[choices["rnn.cell"]]
    nodes = [((0.0, 0.0), "x, h", QUIET), ((1.5, 0.0), name, INK), ((3.0, 0.0), "h", QUIET)]
    return nodes, [(0, 1), (1, 2)]


def dag_graph(cell: recurrent.Dag) -> tuple[list[Node], list[Edge]]:
    """A node is as far right as its way from the input is long."""
    depth, rows = [1], {1: 1}
    nodes: list[Node] = [((0.0, 0.0), "x, h", QUIET), ((1.0, 0.0), "0", COLOURS[cell.first])]
    edges, read = [(0, 1)], set()
    for i, (source, function) in enumerate(cell.nodes, start=1):
        depth.append(depth[source] + 1)
        row = rows.get(depth[i], 0)
        rows[depth[i]] = row + 1
        nodes.append(((float(depth[i]), float(row)), str(i), COLOURS[function]))
        edges.append((source + 1, i + 1))
        read.add(source)
    nodes.append(((max(depth) + 1.0, 0.0), "mean", QUIET))
    ends = [i for i in range(len(cell.nodes) + 1) if i not in read]
    return nodes, edges + [(i + 1, len(nodes) - 1) for i in ends]


def tree_graph(cell: recurrent.Tree) -> tuple[list[Node], list[Edge]]:
    n = len(cell.leaves)
    nodes: list[Node] = [((0.0, (n - 1) / 2), "x, h", QUIET)]
    edges = []
    for i, (how, function) in enumerate(cell.leaves):
        nodes.append(((1.0, float(i)), SIGNS[how], COLOURS[function]))
        edges.append((0, i + 1))
    for i, (how, function) in enumerate(cell.inner):
        (x, upper), (_, lower) = nodes[2 * i + 1][0], nodes[2 * i + 2][0]
        nodes.append(((x + 1, (upper + lower) / 2), SIGNS[how], COLOURS[function]))
        edges += [(2 * i + 1, n + i + 1), (2 * i + 2, n + i + 1)]
    x, y = nodes[-1][0]
    nodes.append(((x + 1, y), "h", QUIET))
    edges.append((len(nodes) - 2, len(nodes) - 1))
    nodes.append(((0.0, -0.8 if n == 2 else float(n)), "c", COLOURS[cell.memory[1]]))
    edges.append((len(nodes) - 1, cell.into + 1))
    nodes.append(((x + 1, y + 1), "c", QUIET))
    edges.append((cell.out + 1, len(nodes) - 1))
    return nodes, edges


def drawn(choices: Choices, gap: float, radius: float, named: bool) -> Html:
    """The graph as a picture."""
    nodes, edges = graph(choices)
    low = min(y for (_, y), *_ in nodes)
    rise = 0.8 * gap
    at = [(radius + 4 + gap * x, radius + 6 + rise * (y - low)) for (x, y), *_ in nodes]
    lines_ = []
    for i, j in edges:
        # over a node that lies between
        far = at[j][0] - at[i][0] > 1.5 * gap and math.isclose(at[i][1], at[j][1])
        bend = 0.55 * rise if far else 0.0
        colour = nodes[j][2]
        thick = 2.0 if named else 1.4
        lines_.append(arc((at[i], at[j]), radius, colour, thick, bend=bend, arrow=named)[0])
    dots = []
    for (x, y), (_, name, colour) in zip(at, nodes, strict=True):
        fill, stroke = (PAPER, colour) if named else (colour, colour)
        dots.append(
            tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=radius, fill=fill, stroke=stroke,
                stroke_width=2)
        )  # fmt: skip
        if named:
            dots.append(text((x, y + 4.5), name, colour=colour, size=12))
    width = max(x for x, _ in at) + radius + 6
    height = max(y for _, y in at) + radius + 0.4 * rise
    title = tag("title", "The cell: " + detail(choices))
    box = f"0 0 {width:.0f} {height:.0f}"
    size = {} if named else {"width": f"{width:.0f}", "height": f"{height:.0f}"}
    return tag("svg", title, lines_, dots, viewBox=box, role="img", **size)


def icon(choices: Choices) -> Html:
    """The graph, small: colours without names."""
    return drawn(choices, 11, 2, named=False)


def key() -> Html:
    """What a network's few words and the colours of its nodes mean."""
    said = (
        "network: cell and its nodes, units of a state, width of the embedding, memory and its "
        "slots, experts"
    )
    swatches = [tag("li", said)] + [
        tag("li", tag("i", style=f"background:{colour}"), name)
        for name, colour in COLOURS.items()
        if name not in SIGNS
    ]
    return tag("ul", swatches, class_="legend")


def figure(choices: Choices) -> Html:
    """The graph with its caption."""
    kind = choices["rnn.cell"]
    if kind == "dag":
        gates = choices.get("dag.gates", "highway") == "highway"
        how = "moved towards it by a gate" if gates else "replaced by it"
        said = (
            "A node applies its function to a product of the node before, which is "
            f"{how}; the new state is the mean of the nodes that no other reads. Colours are "
            "functions."
        )
    elif kind == "tree":
        said = (
            "A leaf adds (+) or multiplies a product of the input and one of the state, an inner "
            "node two nodes; c is the memory cell, old and new. Colours are functions."
        )
    else:
        said = f"The {KNOWN[kind]} as it is known."
    picture = tag("div", drawn(choices, GAP, RADIUS, named=True), class_="scroll graph")
    return tag("figure", picture, tag("figcaption", f"The recurrent cell. {said}"))


def stages(choices: Choices) -> Html:
    """Width, parameters and bits of every part."""
    network = recurrent.network(choices)
    params = {name: 0 for name in groups(choices)}
    for place in network.places:
        if place.parameter.kind in ("kernel", "shift"):
            params[network.groups[place.group]] += math.prod(place.parameter.shape)
    width = {"embedding": choices["embed.width"], "recurrent": choices["rnn.units"]}
    rows = [
        (
            words.group(name),
            width.get(name, f"{network.vocabulary:,}"),
            f"{params[name]:,}",
            precision.weights,
            precision.activations,
        )
        for name, precision in zip(groups(choices), precisions(choices), strict=True)
    ]
    heads = ("", "width", "parameters", lines("weight", "bits"), lines("activation", "bits"))
    return table(heads, rows, words=[0])
