"""The leaderboard: trained designs as they were proposed, and the best that the sweep found.

Columns: `rank`; `trial` (the id of the training behind the row); `found` ("search": as proposed,
"sweep": the same network on another accelerator); `front` (no other row is better in all that the
reward is made of at once); the reward's objectives; the metrics; those of the final training, such
as `test_accuracy`, where there was one; then the choices, one column a decision, empty where not
active.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nas import pareto
from nas.early_stopping import stopped
from nas.fidelities import highest
from nas.reward import Pareto, violations
from nas.trial import Status, Trial

if TYPE_CHECKING:
    import pandas

    from nas.run import Run

PRICED = (  # where there is an accelerator
    "latency_s",
    "energy_j",
    "area_mm2",
    "images_per_s",
    "utilization",
    "macs",
    "params",
    "weight_bytes",
    "dram_bytes",
)


def entries(run: Run) -> list[tuple[Trial, str]]:
    """(design, how it was found) of every design that may stand on the leaderboard, unsorted.

    Every trial that was trained to its end and keeps the constraints, of a design trained at
    several fidelities the longest; of the sweep's pairs those on the front over all pairs, and each
    network's best by the reward where that is one number.
    """
    trained = [
        t
        for t in run.trials()
        if t.status is Status.COMPLETE and t.repeats is None and not stopped(t)
    ]
    trials = [t for t in highest(trained) if not violations(run.constraints, t.metrics)]
    pairs = [pair for trial in trials for pair in run.sweep.of(trial)] if run.sweep else []
    on_front = pareto.front(run.front(trials + pairs))[len(trials) :]
    kept = set(np.flatnonzero(on_front).tolist())
    if run.reward.n_objectives == 1 and pairs:
        scores = run.reward(pairs)[:, 0]
        ids = np.array([pair.id for pair in pairs])
        for id in np.unique(ids):
            rows = np.flatnonzero(ids == id)
            kept.add(int(rows[best_first(run, [pairs[i] for i in rows], -scores[rows])[0]]))
    own = {t.id: tuple(t.proposal.encoding) for t in trials}
    return [(t, "search") for t in trials] + [
        (pairs[i], "sweep")
        for i in sorted(kept)
        if tuple(pairs[i].proposal.encoding) != own[pairs[i].id]
    ]


def best_first(run: Run, designs: list[Trial], level: np.ndarray) -> np.ndarray:
    """The order of designs by `level`, lower first; equals by the first metric of the reward, then
    by area where there is one, then by the reward's other metrics."""
    first, *others = run.reward.goals
    if run.sweep and "area_mm2" not in run.reward.needs:
        others.insert(0, "-area_mm2")
    return np.lexsort((*-Pareto(objectives=(first, *others))(designs).T[::-1], level))


def metrics_shown(run: Run) -> tuple[str, ...]:
    """The metrics that have a column: what is evaluated, and where designs are priced their price,
    after the first."""
    first, *others = run.evaluator.metrics
    return (first, *PRICED, *others) if run.sweep else (first, *others)


def final_columns(run: Run) -> dict[str, str]:
    """Column -> metric of the final training."""
    shown = metrics_shown(run)
    finals = [metric for metric in run.evaluator.final_metrics if metric != "cost"]
    return {f"final_{metric}" if metric in shown else metric: metric for metric in finals}


def leaderboard(run: Run) -> pandas.DataFrame:
    """The table described above, best first: by the reward, or by its fronts and their first
    metric."""
    import pandas

    found = entries(run)
    designs = [design for design, _ in found]
    objectives = run.reward(designs)
    if run.reward.n_objectives == 1:
        level = -objectives[:, 0]
    else:
        level = pareto.ranks(objectives).astype(float)
    order = best_first(run, designs, level)
    front = pareto.front(run.front(designs))
    final_of = final_columns(run)
    finals = run.finals()
    rows = []
    for rank, i in enumerate(order, start=1):
        design, how = found[i]
        final, _ = finals.get(design.id, ({}, ""))
        choices = run.space.decode(design.proposal.encoding)
        rows.append(
            {
                "rank": rank,
                "trial": design.id,
                "found": how,
                "front": bool(front[i]),
                **{f"reward:{name}": objectives[i, j] for j, name in enumerate(run.reward.names)},
                **{name: design.metrics.get(name, np.nan) for name in metrics_shown(run)},
                **{column: final.get(metric, np.nan) for column, metric in final_of.items()},
                **{name: choices.get(name) for name in run.space.names},
            }
        )
    columns = [
        "rank",
        "trial",
        "found",
        "front",
        *(f"reward:{name}" for name in run.reward.names),
        *metrics_shown(run),
        *final_of,
        *run.space.names,
    ]
    return pandas.DataFrame(rows, columns=columns)
