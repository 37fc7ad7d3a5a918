"""How the search went: its progress, what was not trained and why, the time it took."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter

import numpy as np

from nas import pareto, words
from nas.fidelities import correlations
from nas.report import charts, drawing, svg
from nas.report.findings import Findings
from nas.report.page import Html, paragraph, section, table, tag
from nas.trial import TRAINING_METRICS, Status

CURVES = {
    "accuracy": "Accuracy on training images after each epoch: blue in the search, black in the "
    "final training, whose images are augmented.",
    "loss": "Loss in training, the mean of each epoch: blue in the search, black in the final "
    "training.",
}
N_CURVES = 6  # designs whose training is drawn
N_REASONS = 6  # most common reasons shown


def chapter(found: Findings) -> Html:
    """Progress, outcomes, time and training curves."""
    if not found.trained:
        return section("The search", paragraph(outcomes(found)), reasons(found))
    return section(
        "The search",
        paragraph(outcomes(found)),
        *fidelities(found),
        tag("div", metric_chart(found), reward_chart(found), class_="pair"),
        paragraph(time_spent(found)),
        reasons(found),
        training_curves(found),
    )


def outcomes(found: Findings) -> str:
    """How many proposals came to what."""
    own = Counter(trial.status for trial in found.trials if trial.repeats is None)
    n_repeated = sum(trial.repeats is not None for trial in found.trials)
    verb = found.run.evaluator.verb
    counts = [
        (len(found.trained), f"was {verb}", f"were {verb}"),
        (own[Status.COMPLETE] - len(found.trained), "was stopped early", "were stopped early"),
        (own[Status.INFEASIBLE], "was infeasible", "were infeasible"),
        (own[Status.FAILED], "failed", "failed"),
        (n_repeated, "repeated an earlier one", "repeated earlier ones"),
        (own[Status.RUNNING], "is still open", "are still open"),
    ]
    controller = found.run.config["controller"]["name"]
    if not found.trials:
        return f"The controller “{controller}” has proposed nothing yet."
    parts = [words.count(*each) for each in counts if each[0]]
    total = words.count(len(found.trials), "proposal")
    return f"Of {total} by the controller “{controller}”, {words.listed(parts)}."


def fidelities(found: Findings) -> list[Html]:
    """How many designs were trained at each length, and how well the lengths agree."""
    settings, name = found.run.config["fidelities"], found.run.front.needs[0]
    if not settings["rungs"]:
        return []
    counts = Counter(trial.metrics["rung"] for trial in found.trained)
    told = [f"{counts[i]} at {rung}" for i, rung in enumerate(settings["rungs"])]
    text = (
        f"Trainings of several lengths: {words.listed(told)}; the best of each "
        f"{settings['reduction']} went on to the next."
    )
    agreements = [words.agreement(c, settings["rungs"]) for c in correlations(found.trials, name)]
    told = [f"Of {words.label(name)}, {each}." for each in agreements]
    return [paragraph(" ".join([text, *told]))]


def metric_chart(found: Findings) -> Html:
    """The first metric of the reward for each trial, and the best so far."""
    goal = found.run.front.goals[0]
    ids, name = [trial.id for trial in found.trained], words.label(goal)
    better = np.fmin if goal.startswith("-") else np.fmax
    values = (found.run.front(found.trained) * found.run.front.signs)[:, 0]
    measured = found.run.sweep and goal.removeprefix("-") in TRAINING_METRICS
    kind = f"Validation {name}" if measured else name.capitalize()
    caption = f"{kind} of each trial, and the best so far."
    form = ".0%" if words.is_share(goal.removeprefix("-")) else "~g"
    return charts.progress_chart(
        ids, values, better.accumulate(values), name.capitalize(), caption, tickformat=form
    )


def reward_chart(found: Findings) -> Html:
    """The reward of each trial, or with several objectives the volume that the front dominates."""
    ids, objectives = [trial.id for trial in found.trained], found.run.reward(found.trained)
    if found.run.reward.n_objectives > 1:
        caption = (
            "The volume of objectives that the front so far dominates, as a share of the last."
        )
        volumes = hypervolumes(objectives)
        return charts.progress_chart(ids, None, volumes, "Hypervolume", caption, tickformat=".0%")
    values = objectives[:, 0]
    best = np.fmax.accumulate(values)
    caption = "The reward of each trial as proposed, before the sweep, and the best so far."
    return charts.progress_chart(ids, values, best, "Reward", caption, tickformat="~g")


def hypervolumes(objectives: np.ndarray) -> np.ndarray:
    """After each trial, the volume that the front so far dominates, as a share of the last: [n].

    Objectives [n, m] are scaled to their ranges; the reference is the worst of each.
    """
    measured = objectives[~np.isnan(objectives).any(axis=1)]
    if not len(measured):
        return np.zeros(len(objectives))
    low, high = measured.min(axis=0), measured.max(axis=0)
    scaled = (objectives - low) / np.where(high > low, high - low, 1)
    reference = np.zeros(objectives.shape[1])
    kept, volume, volumes = scaled[:0], 0.0, []
    for point in scaled:
        joined = np.vstack([kept, point])
        on_front = pareto.front(joined)
        if on_front[-1]:
            kept = joined[on_front]
            volume = pareto.hypervolume(kept, reference)
        volumes.append(volume)
    return np.array(volumes) / (volume or 1.0)


def time_spent(found: Findings) -> str:
    """The training seconds, and what share they are of the time that the workers had."""
    verb = found.run.evaluator.verb
    if found.run.evaluator.in_process:
        return f"Candidates were {verb}, not trained."
    seconds = [t.metrics["seconds"] for t in found.trained if "seconds" in t.metrics]
    finals = [metrics["seconds"] for metrics in found.finals.values() if "seconds" in metrics]
    if not seconds:
        return "How long that took was not recorded."
    elapsed = max(end for *_, end in found.times) - min(start for _, start, _ in found.times)
    workers = found.run.config["workers"]
    text = (
        f"Candidates were {verb} for {words.duration(sum(seconds))}, in the median "
        f"{words.duration(statistics.median(seconds))} each. From the first proposal to the "
        f"last result passed {words.duration(elapsed)}, pauses included"
    )
    if elapsed:
        share = sum(seconds) / (workers * elapsed)
        text += (
            f"; that filled {words.percent(share, 0)} of the time of "
            f"{words.count(workers, 'worker')}"
        )
    rates = [t.metrics["flops"] for t in found.trained if "flops" in t.metrics]
    if rates:
        peaks = [t.metrics["peak_share"] for t in found.trained if "peak_share" in t.metrics]
        text += (
            f". In the median a training computed {statistics.median(rates) / 1e9:.0f} GFLOP/s, "
            f"{words.percent(statistics.median(peaks), 0)} of what a large matrix product reaches "
            "on one core"
        )
    if finals:
        trainings = words.count(len(finals), "final training")
        text += f". {trainings} took {words.duration(sum(finals))} more"
    return text + "."


def counted_reasons(found: Findings) -> list[tuple[tuple[str, str], int]]:
    """Why proposals were infeasible or failed, ((outcome, reason), how many), most common first."""
    counts = Counter(
        (str(trial.status), re.sub(r"^\w+ = \S+ breaks", "breaks", trial.error or words.NONE))
        for trial in found.trials
        if trial.status in (Status.INFEASIBLE, Status.FAILED) and trial.repeats is None
    )
    return counts.most_common()


def reasons(found: Findings) -> Html | None:
    """The most common reasons why a proposal was infeasible or failed, where any did."""
    counted = counted_reasons(found)
    if not counted:
        return None
    rows = [(n, status, reason) for (status, reason), n in counted[:N_REASONS]]
    n_others = sum(n for _, n in counted[N_REASONS:])
    if n_others:
        rows.append((n_others, words.NONE, "other reasons"))
    return tag(
        "div",
        tag("h3", f"Why proposals were not {found.run.evaluator.verb}"),
        table(("trials", "outcome", "reason"), rows, words=[1, 2]),
    )


def training_curves(found: Findings) -> Html | None:
    """Accuracy, or of language models the loss, against epochs of the first designs, in the search
    and after it, where recorded."""
    measure = "accuracy" if found.run.evaluator.metrics[0] == "accuracy" else "loss"
    trials = {trial.id: trial.metrics for trial in found.trained}
    ids = list(dict.fromkeys(found.board["trial"].tolist()))[:N_CURVES]
    in_search = {id: curve(trials[id], measure) for id in ids}
    in_final = {id: curve(found.finals.get(id, {}), measure) for id in ids}
    points = [point for id in ids for point in in_search[id] + in_final[id]]
    if not points:
        return None
    longest = max(epoch for epoch, _ in points)
    low = math.floor(10 * min(value for _, value in points)) / 10
    high = math.ceil(10 * max(value for _, value in points)) / 10
    form = ".0%" if measure == "accuracy" else ".1f"
    frame = drawing.Frame(longest, low, max(high, low + 0.1), form)
    figures = [
        tag(
            "figure",
            drawing.curves([(in_final[id], svg.INK), (in_search[id], svg.BLUE)], frame),
            tag("figcaption", f"trial {id}"),
        )
        for id in ids
    ]
    return tag(
        "div",
        tag("h3", "How the first designs trained"),
        tag("div", figures, class_="curves"),
        paragraph(CURVES[measure], class_="note"),
    )


def curve(metrics: dict, measure: str) -> list[svg.Point]:
    """(epoch, accuracy or loss) of a training, where both are known."""
    return [
        (float(point["epoch"]), float(point[measure]))
        for point in metrics.get("curve", [])
        if words.known(point.get(measure))
    ]
