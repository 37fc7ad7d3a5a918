"""What was found: the run in two sentences, its front, its leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nas.report import charts, words
from nas.report.findings import Findings
from nas.report.page import Html, fold, lines, paragraph, section, table, tag

if TYPE_CHECKING:
    import pandas

TOP = 15  # rows of the leaderboard shown
WORDS = {"run", "cell", "network", "bits", "batch", "accelerator", "found"}  # flush left


def summary(found: Findings) -> str:
    """The run in two sentences."""
    run = found.run
    n_trained = len(found.trained)
    size = words.power(run.space.n_designs)
    if not n_trained:
        return f"No design has been trained yet, of {size} possible."
    trained = (
        f"{words.count(n_trained, 'design')} of {size} possible "
        f"{'was' if n_trained == 1 else 'were'} trained"
    )
    if not found.designs:
        limits = words.listed([str(constraint) for constraint in run.constraints])
        return f"{trained}, none within the constraints ({limits})."
    n_networks = found.board["trial"].nunique()
    n_accelerators = run.sweep.n_accelerators
    best = found.board.iloc[0]
    return (
        f"{trained}, and each network was priced on all {n_accelerators:,} accelerators of the "
        f"space: {n_networks * n_accelerators:,} pairs. The best, trial {best['trial']}, reaches "
        f"{accuracy(found)}. It serves {batch(found)} in {words.quantity(best['latency_s'], 's')}, "
        f"at {words.quantity(best['energy_j'], 'J')} an image, on an accelerator of "
        f"{words.number(best['area_mm2'])}{words.SPACE}mm²."
    )


def accuracy(found: Findings) -> str:
    """How accurate the best design is, on test images where it was scored on them."""
    final = found.best_final
    if not words.known(final.get("test_accuracy")):
        return f"{words.percent(found.board['accuracy'].iloc[0])} on validation images"
    share, n_test = final["test_accuracy"], final["n_test"]
    error = words.number(100 * words.standard_error(share, n_test), 2)
    return f"{words.percent(share)} (± {error}) on {n_test:,} test images that the search never saw"


def batch(found: Findings) -> str:
    n = found.designs[0]["serve.batch"]
    return "one image" if n == 1 else f"a batch of {n}"


def key_figures(found: Findings) -> Html:
    """The best design's figures, large."""
    best, final = found.board.iloc[0], found.best_final
    pairs = [
        (words.percent(best["accuracy"]), "validation accuracy in the search"),
        (words.quantity(best["latency_s"], "s"), f"latency of {batch(found)}"),
        (words.quantity(best["energy_j"], "J"), "energy of an image"),
        (f"{words.number(best['area_mm2'])}{words.SPACE}mm²", "area of the accelerator"),
        (words.quantity(best["weight_bytes"], "B"), f"{int(best['params']):,} weights"),
    ]
    if words.known(final.get("test_accuracy")):
        pairs.insert(0, (words.percent(final["test_accuracy"]), "test accuracy, trained longer"))
    return tag(
        "div",
        [tag("div", tag("b", value), tag("span", name)) for value, name in pairs],
        class_="figures",
    )


def front(found: Findings) -> Html:
    """The leaderboard's front, drawn, and its designs."""
    on_front = [i for i, inside in enumerate(found.board["front"]) if inside]
    return section(
        "The front",
        paragraph(
            f"{words.count(len(on_front), 'design')} of the {len(found.board):,} on the "
            f"leaderboard {'is' if len(on_front) == 1 else 'are'} on the front: no other is better "
            "in accuracy, latency and energy at once."
        ),
        charts.front_chart(found.board, found.designs, found.family),
        fold(f"The designs on the front ({len(on_front)})", board_table(found, on_front)),
    )


def leaderboard(found: Findings) -> Html:
    """One row a network, on its best accelerator."""
    networks = found.board.drop_duplicates("trial")
    shown = networks.head(TOP)
    which = (
        f"The first {len(shown)} of {len(networks)} networks"
        if len(shown) < len(networks)
        else words.count(len(networks), "network")
    )
    return section(
        "The leaderboard",
        paragraph(
            f"{which}, each on its best accelerator. Bits are of weights/activations in the three "
            f"stages, then in the first and last layer. All {words.count(len(found.board), 'row')} "
            "with every choice: ",
            tag("code", found.run.dir.leaderboard),
        ),
        board_table(found, list(shown.index)),
        found.drawing.key(),
    )


def board_table(found: Findings, rows: Sequence[int]) -> Html:
    """The rows of the leaderboard at these positions."""
    units = units_of([found.board.iloc[i] for i in rows])
    heads = headings(units)
    designs = [cells(found, i, units) for i in rows]
    if found.run.reward.n_objectives == 1:
        heads["reward"] = "reward"
        rewards = found.board[f"reward:{found.run.reward.names[0]}"]
        for line, i in zip(designs, rows, strict=True):
            line["reward"] = words.number(rewards[i])
    return design_table(heads, designs)


def design_table(heads: Mapping[str, Any], designs: Sequence[Mapping[str, Any]]) -> Html:
    """A table of designs, a mapping from column to cell each; a column that one lacks is a dash."""
    return table(
        list(heads.values()),
        [[line.get(name, words.NONE) for name in heads] for line in designs],
        words=[i for i, name in enumerate(heads) if name in WORDS],
    )


def units_of(rows: Sequence[pandas.Series]) -> dict[str, words.Unit]:
    """The units that suit the latencies and energies of some designs."""
    bases = {"latency_s": "s", "energy_j": "J"}
    return {name: words.unit([row[name] for row in rows], base) for name, base in bases.items()}


def headings(units: Mapping[str, words.Unit]) -> dict[str, Any]:
    """Column -> heading."""
    return {
        "rank": "#",
        "trial": "trial",
        "cell": "cell",
        "network": "network",
        "bits": "bits w/a",
        "batch": lines("batch", "train/serve"),
        "accelerator": "accelerator",
        "found": "by",
        "accuracy": "accuracy",
        "test": "test",
        "latency": lines("latency", units["latency_s"].name),
        "energy": lines("energy", units["energy_j"].name),
        "area": lines("area", "mm²"),
    }


def cells(found: Findings, i: int, units: Mapping[str, words.Unit]) -> dict[str, Any]:
    """Column -> cell of the design in row i of the leaderboard."""
    row, choices = found.board.iloc[i], found.designs[i]
    return {
        "rank": row["rank"],
        "trial": row["trial"],
        "cell": found.drawing.icon(choices),
        "network": found.drawing.brief(choices),
        "bits": words.bits(choices),
        "batch": f"{choices['train.batch']}/{choices['serve.batch']}",
        "accelerator": [words.array(choices), tag("small", words.rates(choices))],
        "found": row["found"],
        "accuracy": words.percent(row["accuracy"]),
        "test": words.percent(row["test_accuracy"]),
        "latency": words.number(row["latency_s"] / units["latency_s"].scale),
        "energy": words.number(row["energy_j"] / units["energy_j"].scale),
        "area": words.number(row["area_mm2"]),
    }
