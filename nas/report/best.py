"""The best design explained: its network, its bits, its accelerator, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nas import words
from nas.report import explain, results
from nas.report.explain import Bound, Change
from nas.report.findings import Findings
from nas.report.page import Html, facts, fold, lines, paragraph, section, table, tag
from nas.trial import TRAINING_METRICS
from search_spaces import hardware, joint

if TYPE_CHECKING:
    import pandas

    from nas.run import Run

N_CHANGES = 6  # single changes of the accelerator shown unfolded


def chapter(found: Findings) -> Html:
    """The first row of the leaderboard."""
    choices, best = found.designs[0], found.board.iloc[0]
    network = found.drawing.figure(choices), found.drawing.stages(choices)
    if not found.run.sweep:
        return section(
            "The best design",
            paragraph(f"Trial {best['trial']}. {ranking(found.run)}"),
            *network,
        )
    how = (
        "as the search proposed it"
        if best["found"] == "search"
        else "its network as the search trained it, on an accelerator that the sweep found"
    )
    return section(
        "The best design",
        paragraph(f"Trial {best['trial']}: {how}. {ranking(found.run)}"),
        tag("div", tag("div", *network), tag("div", design_facts(found)), class_="pair"),
        written(found),
        costs(found),
    )


def ranking(run: Run) -> str:
    """By what the leaderboard is sorted."""
    if run.reward.n_objectives > 1:
        first, *_ = goals = [words.label(goal) for goal in run.reward.goals]
        return (
            f"Designs are ranked by their front in {words.listed(goals)}, and by {first} within a "
            "front."
        )
    doc = type(run.reward).__doc__.splitlines()[0].rstrip(".")
    targets = [words.metric(*pair) for pair in run.config["reward"].get("targets", {}).items()]
    within = f", with targets of {words.listed(targets)}" if targets else ""
    return (
        f"Designs are ranked by the reward “{run.config['reward']['name']}”: "
        f"{doc[0].lower()}{doc[1:]}{within}."
    )


def design_facts(found: Findings) -> Html:
    """The accelerator, how the network is trained and served, and what it weighs."""
    choices, best, final = found.designs[0], found.board.iloc[0], found.best_final
    family = found.run.config["space"]["accelerators"]
    technology_nm = hardware.configs_of([choices]).row(0)["technology_nm"]
    first = found.metrics[0]
    evaluator, example = found.run.evaluator, results.example(found)
    in_search = words.scored(first, best[first])
    if first in TRAINING_METRICS:
        in_search += f" on validation {evaluator.tested}"
    rows = [
        ("Accelerator", words.accelerator(family, choices, best["area_mm2"], technology_nm)),
        ("Array utilization", words.percent(best["utilization"])),
        ("Serving batch", choices["serve.batch"]),
        ("Throughput", f"{words.number(best['images_per_s'])} {evaluator.example}s a second"),
        ("Multiply-adds", f"{words.quantity(best['macs'], '')} {words.a(example)}"),
        ("DRAM traffic", f"{words.quantity(best['dram_bytes'], 'B')} {words.a(example)}"),
        ("Training batch", choices["train.batch"]),
        ("Learning rate", words.learning_rate(choices)),
        *techniques(found),
        ("In the search", in_search),
    ]
    if final:
        name = evaluator.final_metrics[0]
        metric = name.removeprefix("test_")  # trials may be judged by another
        longer = (
            f"{words.scored(metric, final[metric])} on validation {evaluator.tested}, "
            f"{words.value(metric, final[name])} on {final['n_test']:,} untouched test "
            f"{evaluator.tested}"
        )
        rows.append((f"After {words.several(final['epochs'], 'epoch')}", longer))
    return facts(rows)


def written(found: Findings) -> list[Html]:
    """What a language model makes of the beginning of the validation text, where it was asked."""
    final = found.best_final
    if "written" not in final:
        return []
    tested = found.run.evaluator.final_metrics[0]
    return [
        tag("h3", "What it writes"),
        tag("blockquote", tag("i", final["prompt"]), " ", final["written"]),
        paragraph(
            f"Begun by the validation text in italics, then drawn word by word, <eos> ending a "
            f"sentence; at a test {words.label(found.metrics[0])} of "
            f"{words.value(found.metrics[0], final[tested])}.",
            class_="note",
        ),
    ]


def techniques(found: Findings) -> list[tuple[str, str]]:
    """What is not as in most searches, and what hangs on it: a row, or none."""
    space, choices = found.run.config["space"], found.designs[0]
    named: set[str] = set()
    for decision in joint(space["network"], space["accelerators"]).decisions:
        unusual = decision.usual is not None and choices.get(decision.name) not in decision.usual
        if unusual or not named.isdisjoint(decision.when):
            named.add(decision.name)
    chosen = [
        f"{name} {value}"
        for name, value in choices.items()
        if name in named and not name.startswith(("hw.", "text."))
    ]
    return [("Techniques", "; ".join(chosen))] if chosen else []


def costs(found: Findings) -> list[Html]:
    """Where the time and the energy go, and what one change of the accelerator would do."""
    choices = found.designs[0]
    layers = explain.layer_prices(found.family, choices)
    bounds, changes = explain.bounds(layers), explain.changes(found.run, choices)
    time = [(row.bound, row.share, f"{row.layer}: {row.bound}") for row in layers.itertuples()]
    energy = [
        (name, share, explain.COMPONENTS[name])
        for name, share in explain.energy_shares(layers).items()
    ]
    return [
        tag("h3", "Where the time goes"),
        paragraph(time_words(bounds, changes)),
        strip(time),
        legend([(b.name, b.share, explain.BOUNDS.get(b.name, b.name)) for b in bounds]),
        fold(f"Every layer ({len(layers)}), and what bounds it", layer_table(layers)),
        tag("h3", "Where the energy goes"),
        strip(energy),
        legend(energy),
        changes_table(changes),
    ]


def time_words(bounds: list[Bound], changes: list[Change]) -> str:
    """What bounds the network, and what would help most."""
    first, n_layers = bounds[0], sum(bound.n_layers for bound in bounds)
    text = (
        f"{words.percent(first.share, 0)} of the time goes into {first.n_layers} of the {n_layers} "
        f"layers, which are bound by {explain.BOUNDS.get(first.name, first.name)}. "
    )
    faster = [change for change in changes if not change.obstacle and change.latency < 0.9995]
    if not faster:
        return (
            f"{text}No single change of the accelerator that the space and the constraints allow "
            "would make it faster."
        )
    best = faster[0]
    name, before, after = change_words(best)
    return (
        f"{text}Of all single changes of the accelerator, {name} from {before} to {after} would "
        f"help most: latency {words.change(best.latency)}, energy {words.change(best.energy)}, "
        f"area {words.change(best.area)}."
    )


def change_words(change: Change) -> tuple[str, str, str]:
    """The decision, its value before and after."""
    name, before = words.decision(change.decision, change.before)
    return name, before, words.decision(change.decision, change.after)[1]


def strip(parts: Sequence[tuple[str, float, str]]) -> Html:
    """Shares side by side: (class of the colour, share, what it is)."""
    spans = [
        tag("span", class_=name, style=f"flex:{share:.5f}", title=f"{title}, {share:.1%}")
        for name, share, title in parts
    ]
    return tag("div", spans, class_="strip")


def legend(parts: Sequence[tuple[str, float, str]]) -> Html:
    """What the colours of a strip mean, with their shares."""
    items = [
        tag("li", tag("i", class_=name), f"{text} {words.percent(share, 0)}")
        for name, share, text in parts
    ]
    return tag("ul", items, class_="legend")


def layer_table(layers: pandas.DataFrame) -> Html:
    """A line a layer, its share of the latency as a bar."""
    widest = layers["share"].max()
    rows = [
        (
            row.layer,
            row.bound,
            tag("span", class_=f"bar {row.bound}", style=f"width:{7 * row.share / widest:.2f}rem"),
            words.percent(row.share),
            f"{row.cycles:,.0f}",
            words.number(1e6 * row.energy_j),
            words.quantity(row.dram_bytes, "B"),
            words.percent(row.utilization, 0),
        )
        for row in layers.itertuples()
    ]
    heads = (
        "layer",
        "bound",
        "share of latency",
        "",
        "cycles",
        lines("energy", "µJ a batch"),
        lines("DRAM", "a batch"),
        lines("array", "utilized"),
    )
    return table(heads, rows, words=[0, 1, 2])


def changes_table(changes: list[Change]) -> list[Html]:
    """One step away: what each change of the accelerator would do to the best design."""
    if not changes:
        return []
    heads = ("change", "from", "to", "latency", "energy", "area")
    rows = [change_line(change) for change in changes]
    first, others = rows[:N_CHANGES], rows[N_CHANGES:]
    more = words.count(len(others), "slower change")
    return [
        tag("h3", "What one change of the accelerator would do"),
        table(heads, first, words=[0, 1, 2]),
        *([fold(more, table(heads, others, words=[0, 1, 2]))] if others else []),
    ]


def change_line(change: Change) -> list:
    """A row of the table; a change that a constraint forbids says so."""
    name, before, after = change_words(change)
    obstacle = tag("small", f"not allowed: {change.obstacle}") if change.obstacle else None
    ratios = change.latency, change.energy, change.area
    return [[name, obstacle], before, after, *map(words.change, ratios)]
