"""Controllers: which design to evaluate next. One file each; the table is below.

A controller asks and is told:

    controller = make("evolution", space, seed=0, n_objectives=reward.n_objectives)
    proposals = controller.ask(4)            # 4 designs to evaluate
    controller.tell(trials, reward(trials))  # what came of them

It may be asked again before it is told, as often as trials are in flight, and is told in the order
of the trials. Its constructor takes (space, *, seed, n_objectives=1), and outlook=None if it can
use what is known without training, as hardware costs (outlook.py). What else it takes, by keyword
and with a default, are its options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from nas.controllers import keras_tuner, optuna
from nas.controllers.evolution import Evolution
from nas.controllers.local_search import LocalSearch
from nas.controllers.nsga2 import NSGA2
from nas.controllers.outlook import Outlook
from nas.controllers.policy_gradient import PolicyGradient
from nas.controllers.random import Random
from nas.controllers.surrogate import Surrogate
from nas.controllers.tunas import TuNAS
from nas.table import look_up
from nas.table import options as known_options
from nas.trial import Proposal, State, Trial
from search_spaces.space import Space


class Controller(Protocol):
    """Proposes designs and learns from what they came to. One that begins with random designs says
    how many: `n_start`."""

    def ask(self, n: int) -> list[Proposal]:
        """`n` proposals inside the space, their encodings canonical."""

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        """Learn objectives [trials, n_objectives], larger is better.

        Failed and infeasible trials come as rows of NaN; each controller says what it does with
        them. Raises ValueError for another shape.
        """

    def state(self) -> State:
        """All that `restore` needs, the random generator included: JSON values and, at the top
        level only, NumPy arrays; none of them changes when the controller goes on."""

    def restore(self, state: State) -> None:
        """Go on as the controller that gave `state`, one of the same class, space and options: no
        method can tell the two apart."""


CONTROLLERS: dict[str, type] = {
    "random": Random,
    "local_search": LocalSearch,
    "evolution": Evolution,
    "nsga2": NSGA2,
    "policy_gradient": PolicyGradient,
    "tunas": TuNAS,
    "surrogate": Surrogate,
}
# of other libraries, which are imported when one is made
FOREIGN: dict[str, type] = {**keras_tuner.ORACLES, **optuna.SAMPLERS}


HANDED_OVER = ("seed", "n_objectives", "outlook")  # by the run to its controller, no options


def make(
    name: str,
    space: Space,
    *,
    seed: int,
    n_objectives: int = 1,
    outlook: Outlook | None = None,
    **options: Any,
) -> Controller:
    """The controller called `name`; one that makes no use of an outlook goes without.

    Raises ValueError, with the nearest name, for an unknown controller or option; for an option of
    the wrong type or range; for more objectives than it can pursue; and for a space of one design.
    """
    if not (space.sizes > 1).any():
        raise ValueError(
            f"a space of one design leaves nothing to search; got {space!r}; "
            "leave a decision at least two values"
        )
    table = CONTROLLERS | FOREIGN
    controller = look_up("controller", table, name, options, besides=HANDED_OVER)
    if "outlook" in known_options(controller):
        options["outlook"] = outlook
    return controller(space, seed=seed, n_objectives=n_objectives, **options)
