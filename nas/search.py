"""The loop: ask, price, train, tell; every step one transaction.

Proposals are asked for in order and told in order, `in_flight` of them ahead of the last told, so
that a run depends on its seed and not on which worker was faster, nor on how many there are. Where
it need not be deterministic, they are told as they land: nobody waits for the slowest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from nas.early_stopping import EarlyStopping
from nas.fidelities import rung_of
from nas.reward import lost, violations
from nas.store import Store
from nas.trial import Status, Trial, trial_seed
from search_spaces import Space

MAX_FRUITLESS = 1000  # proposals in a row of which none could be trained
MAX_FAILURES = 10  # trainings that failed before any ended well; later ones stop nothing


class SearchError(RuntimeError):
    """The search cannot go on; everything so far is kept."""


def task_of(
    trial: Trial, space: Space, fidelities: Sequence[int] = (), kind: str = "trial"
) -> dict:
    """What an executor is told of a trial."""
    task = {
        "id": trial.id,
        "kind": kind,
        "seed": trial.seed,
        "choices": space.decode(trial.proposal.encoding),
        "stop_below": trial.metrics.get("stop_below", []),
    }
    return task | ({"fidelity": fidelities[trial.metrics["rung"]]} if fidelities else {})


class Search:
    """One run of the loop over an open store.

    The controller, the store's open trials and their count are restored from the store, so that
    a new run and a resumed one begin in the same way. price: designs -> what is known of each
    before its training, and why it cannot be trained or None. watch: called after each trial told.
    fidelities: what the evaluator is told of each rung, where the controller names rungs.
    """

    def __init__(
        self,
        *,
        price: Callable[[Sequence], list],
        space: Space,
        controller,
        reward,
        constraints: Sequence,
        executor,
        store: Store,
        n_trials: int,
        in_flight: int,
        seed: int,
        out_of_time: Callable[[], bool],
        watch: Callable[[Trial], None],
        early_stopping: EarlyStopping | None = None,
        deterministic: bool = True,
        fidelities: Sequence[int] = (),
    ):
        self.price_designs, self.space, self.controller = price, space, controller
        self.reward, self.constraints = reward, constraints
        self.executor, self.store, self.watch = executor, store, watch
        self.n_trials, self.in_flight, self.seed = n_trials, in_flight, seed
        self.out_of_time = out_of_time
        self.early_stopping, self.deterministic = early_stopping, deterministic
        self.fidelities = fidelities
        if early_stopping:
            early_stopping.tell(store.trials("told IS NOT NULL"))
        self.n_asked = store.count()
        self.fruitless = 0  # proposals since the last that could be trained
        self.n_trained = store.count("status <> 'infeasible' AND repeats IS NULL")
        self.n_told = store.count("told IS NOT NULL")
        self.open: deque[Trial] = deque(store.untold())
        state = store.controller_state()
        if state is not None:
            try:
                controller.restore(state)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise store.damaged(
                    f"its controller's state is of another kind: {error}"
                ) from error
        for trial in self.open:
            if trial.status is Status.RUNNING and trial.repeats is None:
                self.submit(trial)

    def run(self) -> None:
        """Until `n_trials` are trained and told. Raises SearchError where that cannot be."""
        n_complete, failures = self.store.count("status = 'complete'"), 0
        while True:
            self.ask()
            if not self.open:
                return
            trial = self.settle(self.next())
            self.open.remove(trial)
            self.tell(trial)
            n_complete += trial.status is Status.COMPLETE
            failures += trial.status is Status.FAILED
            if failures == MAX_FAILURES and not n_complete:
                raise SearchError(
                    f"{failures} trials in a row failed, the last with: {trial.error}"
                )

    def next(self) -> Trial:
        """The trial to tell next: the first asked for; where the order is free, the first known."""
        if self.deterministic:
            return self.open[0]
        untold = {trial.id for trial in self.open}
        while True:
            for trial in self.open:
                landed = trial.status is not Status.RUNNING
                if landed or (trial.repeats is not None and trial.repeats not in untold):
                    return trial
            self.land(self.executor.wait())

    def ask(self) -> None:
        """Fill the window; candidates that cannot be trained are told at once."""
        while not self.out_of_time():
            waiting = sum(trial.repeats is None for trial in self.open)
            n = min(self.in_flight - waiting, self.n_trials - self.n_trained)
            if n <= 0 or len(self.open) >= 2 * self.in_flight:
                return  # enough to train, or so many repeats that they are told first
            trials = self.price(self.controller.ask(n))
            with self.store.transaction():
                for trial in trials:
                    self.store.insert(trial)
                    if trial.status is Status.INFEASIBLE:
                        self.controller.tell([trial], self.reward([trial]))
                        self.store.mark_told(trial.id, self.n_told)
                        self.n_told += 1
                self.store.save_controller(self.controller.state())
            for trial in trials:
                self.n_asked += 1
                self.fruitless += 1
                if trial.status is Status.INFEASIBLE:
                    self.watch(trial)
                    continue
                self.open.append(trial)
                if trial.repeats is None:
                    self.n_trained += 1
                    self.fruitless = 0
                    self.submit(trial)
            if self.fruitless >= MAX_FRUITLESS:
                reasons = [t.error or f"repeats trial {t.repeats}" for t in trials]
                raise SearchError(
                    f"{self.fruitless} proposals in a row could not be trained, the last because: "
                    f"{reasons[-1]}; loosen the constraints or widen the space"
                )

    def price(self, proposals: Sequence) -> list[Trial]:
        """New trials, all priced in one call; what breaks a hardware constraint is infeasible."""
        designs = [self.space.decode(p.encoding) for p in proposals]
        trials: list[Trial] = []
        met: dict[tuple, int] = {}
        for p, (metrics, reason) in zip(proposals, self.price_designs(designs), strict=True):
            id = self.n_asked + len(trials)
            rung = rung_of(p) if self.fidelities else None
            metrics = metrics if rung is None else {**metrics, "rung": rung}
            trial = Trial(id, p, trial_seed(self.seed, id), metrics=metrics)
            broken = violations(self.constraints, metrics)
            reason = reason or (broken[0] if broken else None)
            key = (*p.encoding.tolist(), rung)
            if reason is not None:
                trial.status, trial.error = Status.INFEASIBLE, reason
            else:
                trial.repeats = met.get(key, self.store.same_design(p.encoding, rung))
                met.setdefault(key, id)
                if self.early_stopping and trial.repeats is None:
                    trial.metrics = {**metrics, "stop_below": self.early_stopping.limits()}
            trials.append(trial)
        return trials

    def submit(self, trial: Trial) -> None:
        """Have a trial evaluated, unless a repair saved its result."""
        saved = self.store.saved_result(trial)
        if saved:
            trial.status, trial.error = saved.status, saved.error
            trial.metrics = {**trial.metrics, **saved.metrics}
            self.store.finish(trial)
            return
        self.executor.submit(task_of(trial, self.space, self.fidelities))

    def settle(self, trial: Trial) -> Trial:
        """Wait until the outcome of `trial` is known; others that land meanwhile are recorded."""
        if trial.repeats is not None:
            first = self.store.trials("id = ?", (trial.repeats,))[0]
            trial.status, trial.error = first.status, first.error
            trial.metrics = first.metrics
        while trial.status is Status.RUNNING:
            self.land(self.executor.wait())
        return trial

    def land(self, result: dict) -> None:
        """Record the outcome of the trial that a result is of."""
        landed = next((t for t in self.open if t.id == result["id"]), None)
        if landed is None:  # told, as the run was interrupted
            return
        landed.error = result.get("error")
        landed.metrics = {**landed.metrics, **result.get("metrics", {})}
        landed.error = landed.error or lost(self.reward, landed.metrics)
        landed.status = Status.COMPLETE if landed.error is None else Status.FAILED
        self.store.finish(landed)

    def tell(self, trial: Trial) -> None:
        """Tell the controller and commit its new state with the order of telling."""
        self.controller.tell([trial], self.reward([trial]))
        with self.store.transaction():
            if trial.repeats is not None:  # others are recorded as they land
                self.store.finish(trial)
            self.store.mark_told(trial.id, self.n_told)
            self.store.save_controller(self.controller.state())
        self.n_told += 1
        if self.early_stopping:
            self.early_stopping.tell([trial])
        self.watch(trial)
