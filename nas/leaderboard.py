"""The leaderboard: trained designs as they were proposed, and the best that the sweep found.

Columns: `rank`; `trial` (the id of the training behind the row); `found` ("search": as proposed,
"sweep": the same network on another accelerator); `front` (no other row is better in accuracy,
latency and energy at once); the reward's objectives; the metrics; `test_accuracy` where the design
was trained longer at the end; then the choices, one column a decision, empty where not active.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nas import pareto
from nas.early_stopping import stopped
from nas.progress import front_objectives
from nas.reward import violations
from nas.trial import Status, Trial

if TYPE_CHECKING:
    import pandas

    from nas.run import Run

METRICS = (
    "accuracy",
    "latency_s",
    "energy_j",
    "area_mm2",
    "images_per_s",
    "utilization",
    "macs",
    "params",
    "weight_bytes",
    "dram_bytes",
    "loss",
    "train_loss",
)


def entries(run: Run) -> list[tuple[Trial, str]]:
    """(design, how it was found) of every design that may stand on the leaderboard, unsorted.

    Every trial that was trained to its end and keeps the constraints; of the sweep's pairs those on
    the front over all pairs, and each network's best by the reward where that is one number.
    """
    trials = [
        t
        for t in run.trials()
        if t.status is Status.COMPLETE
        and t.repeats is None
        and not stopped(t)
        and not violations(run.constraints, t.metrics)
    ]
    pairs = [pair for trial in trials for pair in run.sweep.of(trial)]
    on_front = pareto.front(front_objectives(trials + pairs))[len(trials) :]
    kept = set(np.flatnonzero(on_front).tolist())
    if run.reward.n_objectives == 1 and pairs:
        scores = run.reward(pairs)[:, 0]
        ids = np.array([pair.id for pair in pairs])
        for id in np.unique(ids):
            rows = np.flatnonzero(ids == id)
            kept.add(int(rows[best_first([pairs[i] for i in rows], -scores[rows])[0]]))
    own = {t.id: tuple(t.proposal.encoding) for t in trials}
    return [(t, "search") for t in trials] + [
        (pairs[i], "sweep")
        for i in sorted(kept)
        if tuple(pairs[i].proposal.encoding) != own[pairs[i].id]
    ]


def best_first(designs: list[Trial], level: np.ndarray) -> np.ndarray:
    """The order of designs by `level`, lower first; equals by accuracy, then area, then latency."""
    accuracy, area, latency = (
        np.array([design.metrics[name] for design in designs], float)
        for name in ("accuracy", "area_mm2", "latency_s")
    )
    return np.lexsort((latency, area, -accuracy, level))


def leaderboard(run: Run) -> pandas.DataFrame:
    """The table described above, best first: by the reward, or by its fronts, then accuracy."""
    import pandas

    found = entries(run)
    designs = [design for design, _ in found]
    objectives = run.reward(designs)
    if run.reward.n_objectives == 1:
        level = -objectives[:, 0]
    else:
        level = pareto.ranks(objectives).astype(float)
    order = best_first(designs, level)
    front = pareto.front(front_objectives(designs))
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
                **{name: design.metrics.get(name, np.nan) for name in METRICS},
                "test_accuracy": final.get("test_accuracy", np.nan),
                **{name: choices.get(name) for name in run.space.names},
            }
        )
    columns = [
        "rank",
        "trial",
        "found",
        "front",
        *(f"reward:{name}" for name in run.reward.names),
        *METRICS,
        "test_accuracy",
        *run.space.names,
    ]
    return pandas.DataFrame(rows, columns=columns)
