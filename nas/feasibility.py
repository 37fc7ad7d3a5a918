"""What can be known before anything runs: constraints that no design keeps, too many trials."""

from __future__ import annotations

import numpy as np

from hwmodel.cost import FAMILIES
from nas import config as configuration
from nas.reward import Constraint
from search_spaces import hardware
from search_spaces.space import Space

MOST = {"accuracy": 1.0, "utilization": 1.0}  # no metric of the hardware model is below 0


def check(config: dict) -> None:
    """Raise ValueError where no design of the space can keep the constraints, or where there are
    fewer designs than trials. A table is known whole; of the hardware model's metrics only the
    area is, which the network does not change."""
    space = configuration.make_space(config)
    if space.n_designs < config["trials"]:
        raise configuration.ConfigError(
            f"trials is {config['trials']:,}, but the space has only {space.n_designs:,} designs; "
            f"set trials to at most {space.n_designs:,}, or widen the space"
        )
    constraints = configuration.make_constraints(config)
    if not constraints:
        return
    if configuration.is_priced(config):
        for constraint in constraints:
            _possible(constraint, 0.0, MOST.get(constraint.metric, np.inf))
        if any(constraint.metric == "area_mm2" for constraint in constraints):
            areas = _areas(space)
            _satisfied([c for c in constraints if c.metric == "area_mm2"], {"area_mm2": areas})
    else:
        table = configuration.make_evaluator(config)
        _satisfied(constraints, table.columns(space, space.enumerate()))


def _possible(constraint: Constraint, least: float, most: float) -> None:
    best = least if constraint.sense == "<=" else most
    if not constraint.holds(best):
        raise ValueError(
            f"nothing satisfies the constraint '{constraint}': {constraint.metric} is from "
            f"{least:g} to {most:g}; loosen it"
        )


def _satisfied(constraints: list[Constraint], metrics: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless some design keeps all constraints at once."""
    kept = np.ones(len(next(iter(metrics.values()))), bool)
    for constraint in constraints:
        values = metrics[constraint.metric]
        least, most = float(np.nanmin(values)), float(np.nanmax(values))
        _possible(constraint, least, most)
        kept &= constraint.holds(values)
    if not kept.any():
        raise ValueError(
            f"nothing satisfies the constraints {', '.join(map(str, constraints))} at once; "
            "loosen one of them"
        )


def _areas(space: Space) -> np.ndarray:
    """The area of every accelerator of a joint space, mm2."""
    _, _, configs = hardware.every(space)
    return np.broadcast_to(sum(FAMILIES[configs.FAMILY].areas(configs)), len(configs))
