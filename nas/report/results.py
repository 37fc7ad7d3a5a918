"""What was found: the run in two sentences, its front, its leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nas import words
from nas.report import charts, course
from nas.report.findings import Findings
from nas.report.page import Html, fold, lines, paragraph, section, table, tag, text
from nas.trial import TRAINING_METRICS, Status
from search_spaces import precision

if TYPE_CHECKING:
    import pandas

TOP = 15  # rows of the leaderboard shown
COSTS = ("latency_s", "energy_j", "area_mm2")  # of a priced design
SLACKS = (0.01, 0.05)  # how much worse than the best a cheaper design may be
PICTURED = ("icon", "batch")  # columns of a page alone
WORDS = {"run", "choice", "icon", "network", "bits", "batch", "accelerator", "found"}  # flush left


def summary(found: Findings) -> str:
    """The run in two sentences."""
    run = found.run
    n_trained = len(found.trained)
    size = words.power(run.space.n_designs)
    if not n_trained:
        ended = found.trials and all(t.status is not Status.RUNNING for t in found.trials)
        verb = run.evaluator.verb
        text = f"No design {f'was {verb}' if ended else f'has been {verb} yet'}, of {size} possible"
        reasons = [f" Most often: {reason}." for (_, reason), _ in course.counted_reasons(found)]
        return "".join([f"{text}. {course.outcomes(found)}", *reasons[:1]])
    trained = (
        f"{words.count(n_trained, 'design')} of {size} possible "
        f"{'was' if n_trained == 1 else 'were'} {run.evaluator.verb}"
    )
    if not found.designs:
        limits = words.listed([str(constraint) for constraint in run.constraints])
        return f"{trained}, none within the constraints ({limits})."
    best = found.board.iloc[0]
    text = f"{trained}"
    if run.sweep:
        n_accelerators = run.sweep.n_accelerators
        n_pairs = found.board["trial"].nunique() * n_accelerators
        text += (
            f", and each network was priced on all {n_accelerators:,} accelerators of the space: "
            f"{n_pairs:,} pairs"
        )
    text += f". The best, trial {best['trial']}, reaches {reached(found)}"
    if not run.sweep:
        others = [f"{words.label(m)} {words.value(m, best[m])}" for m in found.metrics[1:]]
        return f"{text}{', at ' if others else ''}{words.listed(others)}."
    return (
        f"{text}. It serves {batch(found)} in {words.quantity(best['latency_s'], 's')}, "
        f"at {words.quantity(best['energy_j'], 'J')} {words.a(example(found))}, "
        f"on an accelerator of {words.number(best['area_mm2'])}{words.SPACE}mm²."
    )


def reached(found: Findings) -> str:
    """How good the best design is, at the end of its final training where it had one."""
    best, first = found.board.iloc[0], found.metrics[0]
    final = found.best_final
    evaluator = found.run.evaluator
    if words.known(final.get("n_test")):  # on examples that were kept apart
        tested, n_test = evaluator.final_metrics[0], final["n_test"]
        text = words.scored(first, final[tested])
        if words.is_share(first):
            error = words.number(100 * words.standard_error(final[tested], n_test), 2)
            text += f" (± {error})"
        return f"{text} on {n_test:,} test {evaluator.tested} that the search never saw"
    if found.run.sweep and first in TRAINING_METRICS:
        return f"{words.scored(first, best[first])} on validation {evaluator.tested}"
    text = f"{words.label(first)} {words.value(first, best[first])}"
    columns = [c for c in found.final_columns if words.known(best[c])]
    finals = [f"{words.label(c)} {words.value(c, best[c])}" for c in columns]
    return f"{text} ({words.listed(finals)} after its final training)" if finals else text


def batch(found: Findings) -> str:
    n = found.designs[0]["serve.batch"]
    return f"one {example(found)}" if n == 1 else f"a batch of {n}"


def example(found: Findings) -> str:
    """What a batch is of: an image; a sequence of so many words."""
    n_words = found.designs[0].get("serve.words")
    name = found.run.evaluator.example
    return name if n_words is None else f"{name} of {words.count(n_words, 'word')}"


def key_figures(found: Findings) -> Html:
    """The best design's figures, large."""
    best = found.board.iloc[0]
    names = {m: f"{words.label(m)} in the search" for m in found.metrics[:1]}
    names |= {m: words.label(m) for m in found.metrics[1:]}
    if found.run.sweep:
        if (first := found.metrics[0]) in TRAINING_METRICS:
            names[first] = f"validation {words.label(first)} in the search"
        names |= {
            "latency_s": f"latency of {batch(found)}",
            "energy_j": f"energy of {words.a(example(found))}",
            "area_mm2": "area of the accelerator",
            "weight_bytes": f"{int(best['params']):,} weights",
        }
    finals = {c: f"{words.label(c)}, trained longer" for c in found.final_columns}
    shown = [(m, text) for m, text in {**finals, **names}.items() if words.known(best[m])]
    return tag(
        "div",
        [tag("div", tag("b", words.value(m, best[m])), tag("span", text)) for m, text in shown],
        class_="figures",
    )


def front(found: Findings) -> Html:
    """The leaderboard's front, drawn, and its designs."""
    on_front = [i for i, inside in enumerate(found.board["front"]) if inside]
    goals = words.listed([words.label(goal) for goal in found.run.front.goals])
    return section(
        "The front",
        paragraph(
            f"{words.count(len(on_front), 'design')} of the {len(found.board):,} on the "
            f"leaderboard {'is' if len(on_front) == 1 else 'are'} on the front: no other is better "
            f"in {goals}{' at once' if len(found.run.front.goals) > 1 else ''}."
        ),
        charts.front_chart(found) if len(found.run.front.goals) > 1 else None,
        fold(f"The designs on the front ({len(on_front)})", board_table(found, on_front)),
        alternatives(found),
    )


def alternatives(found: Findings) -> Html | None:
    """The cheapest by each cost among the designs nearly as good as the best: a row a design."""
    first, *others = found.metrics
    goals = found.run.front.goals
    costs = [m for m in others if m in COSTS or f"-{m}" in goals]
    quality = found.board[first].to_numpy(float)
    lower = f"-{first}" in goals
    best = quality.min() if lower else quality.max()
    worse = abs(quality - best) / (1 if words.is_share(first) else abs(best) or 1)
    why: dict[int, list[str]] = {}

    def far(percent: float) -> str:
        point = "point" if percent == 1 else "points"
        return f"{percent:g}{words.SPACE}{point if words.is_share(first) else '%'}"

    for cost in costs:
        for slack in SLACKS:
            near = found.board[worse <= slack + 1e-12]
            row = near.sort_values([cost, first], ascending=[True, lower]).index[0]
            text = f"least {words.label(cost)}"
            if not any(each.startswith(text) for each in why.get(row, [])):
                why.setdefault(row, []).append(f"{text} within {far(100 * slack)}")
    if not why:
        return None
    units = units_of([found.board.iloc[i] for i in why], found.metrics)
    heads = {"choice": "the choice of", **headings(found, units)}
    rows = [{"choice": lines(*reasons), **cells(found, i, units)} for i, reasons in why.items()]
    for name in ("rank", "batch", "found", "reward", *found.final_columns):
        heads.pop(name, None)
    near = "percentage points" if words.is_share(first) else "per cent"
    return tag(
        "div",
        tag("h3", "What could be chosen instead"),
        paragraph(
            f"The cheapest designs of the leaderboard whose {words.label(first)} in the search is "
            f"within so many {near} of the best.",
            class_="note",
        ),
        design_table(heads, rows),
    )


def leaderboard(found: Findings) -> Html:
    """One row a network, on its best accelerator."""
    networks = found.board.drop_duplicates("trial")
    shown = networks.head(TOP)
    noun = "network" if found.run.sweep else "design"
    which = (
        f"The first {len(shown)} of {len(networks)} {noun}s"
        if len(shown) < len(networks)
        else words.count(len(networks), noun)
    )
    priced = (
        ", each on its best accelerator. Bits are of weights/activations in "
        f"{words.listed([words.group(g) for g in precision.groups(found.designs[0])])}"
    )
    return section(
        "The leaderboard",
        paragraph(
            f"{which}{priced if found.run.sweep else ''}. All "
            f"{words.count(len(found.board), 'row')} with every choice: ",
            tag("code", found.run.dir.leaderboard),
        ),
        board_table(found, list(shown.index)),
        found.drawing.key(),
    )


def board_table(found: Findings, rows: Sequence[int]) -> Html:
    """The rows of the leaderboard at these positions."""
    units = units_of([found.board.iloc[i] for i in rows], found.metrics)
    return design_table(headings(found, units), [cells(found, i, units) for i in rows])


def design_table(heads: Mapping[str, Any], designs: Sequence[Mapping[str, Any]]) -> Html:
    """A table of designs, a mapping from column to cell each; a column that one lacks is a dash,
    and one that all lack is left out."""
    heads = {name: head for name, head in heads.items() if any(name in line for line in designs)}
    return table(
        list(heads.values()),
        [[line.get(name, words.NONE) for name in heads] for line in designs],
        words=[i for i, name in enumerate(heads) if name in WORDS],
    )


def units_of(rows: Sequence[pandas.Series], metrics: Sequence[str]) -> dict[str, words.Unit]:
    """The units that suit the values of metrics in some rows, for those that take a prefix."""
    bases = {metric: words.base_unit(metric) for metric in metrics}
    return {
        metric: words.unit([row[metric] for row in rows if metric in row], base)
        for metric, base in bases.items()
        if base
    }


def headings(found: Findings, units: Mapping[str, words.Unit]) -> dict[str, Any]:
    """Column -> heading; a table of designs keeps those that a design has a cell for."""
    metrics = {m: lines(*words.heading(m, units.get(m))) for m in found.metrics}
    finals = {c: lines(*words.heading(c, None)) for c in found.final_columns}
    first, *others = metrics.items()
    return {
        "rank": "#",
        "trial": "trial",
        "icon": "cell",
        "network": "network" if found.run.sweep else "design",
        "bits": "bits w/a",
        "batch": lines("batch", "train/serve"),
        "accelerator": "accelerator",
        "found": "by",
        **dict([first]),
        **finals,
        **dict(others),
        "reward": "reward",
    }


def cells(found: Findings, i: int, units: Mapping[str, words.Unit]) -> dict[str, Any]:
    """Column -> cell of the design in row i of the leaderboard, for what the design has."""
    row, choices = found.board.iloc[i], found.designs[i]
    line = {
        "rank": row["rank"],
        "trial": row["trial"],
        "network": tag("span", found.drawing.brief(choices), class_="wrapped"),
    }
    if icon := found.drawing.icon(choices):
        line["icon"] = icon
    if found.run.sweep:
        line["bits"] = words.bits(choices)
        line["batch"] = f"{choices['train.batch']}/{choices['serve.batch']}"
        line["accelerator"] = [words.array(choices), tag("small", words.rates(choices))]
        line["found"] = row["found"]
    for metric in (*found.metrics, *found.final_columns):
        line[metric] = words.in_unit(metric, row[metric], units.get(metric))
    if found.run.reward.n_objectives == 1:
        line["reward"] = words.number(row[f"reward:{found.run.reward.names[0]}"])
    return line


def text_table(found: Findings, top: int) -> list[list[str]]:
    """The first `top` designs of the leaderboard as cells of text, headings first."""
    rows = found.board.drop_duplicates("trial").head(top).index
    units = units_of([found.board.iloc[i] for i in rows], found.metrics)
    designs = [cells(found, i, units) for i in rows]
    heads = {name: head for name, head in headings(found, units).items() if name not in PICTURED}
    heads = {name: head for name, head in heads.items() if name in designs[0]}
    return [[text(line[name]) for name in heads] for line in (heads, *designs)]
