"""Model-guided search: a Gaussian process says what a training would give, and the next design is
the one with the greatest expected improvement, of the reward or of the front's hypervolume.

The process is over the decisions, and over features of the network where the space has them, as
counts of operations and paths. Known costs are used as known, and only what training measures is
modelled (`Outlook`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas import pareto
from nas.controllers.expected_improvement import Pool, Prospects, Scalarization
from nas.controllers.gaussian_process import MAX_POINTS, GaussianProcess, blas
from nas.controllers.outlook import Outlook, Unknown
from nas.controllers.shared import check_told, mutate
from nas.trial import Grown, Proposal, State, Trial
from search_spaces.space import Space

MAX_ENUMERATED = 50_000  # designs of a space that is looked at as a whole
N_PARENTS = 24  # of the candidates in a larger space
CUT = 2.0  # where bad measurements end, in distances of the best from the median
CUT_OF_FRONTS = 4.0  # deeper, as a front ends with designs that are bad but cheap
REDRAWS = 100  # of random designs, until some are new and can be built
REFIT = 1.05  # the growth of the data after which hyperparameters are fitted again
FIT_STEPS = 10  # of L-BFGS


class Surrogate:
    """The greatest expected improvement under Gaussian processes, a batch at a time.

    start: random designs before the model is asked. candidates: how many designs an `ask` compares
    where the space has more than 50,000: changes of the best so far, changes of the best of those,
    and random ones. Smaller spaces are compared whole, unless the outlook sets a limit.

    Proposals in flight count as told with what the model predicts of them (the kriging believer of
    Ginsbourger et al., 2010), so that a batch does not repeat itself. How bad a bad design is does
    not matter: what training measures is cut off below its median at twice the distance of the best
    above it, at four times where there are several objectives. A failed trial (NaN) counts as that
    bad. What the outlook rules out is not proposed; what training may show to break a constraint
    counts with its probability to keep it.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        n_objectives: int = 1,
        outlook: Outlook | None = None,
        start: int = 10,
        candidates: int = 600,
    ):
        for name, value, least in (("start", start, 2), ("candidates", candidates, 16)):
            if value < least:
                raise ValueError(f"surrogate: {name} must be at least {least}, got {value!r}")
        self.space = space
        self.n_objectives = n_objectives
        self.outlook = Unknown(n_objectives, len(space)) if outlook is None else outlook
        self.n_start = start
        self.n_candidates = min(candidates, self.outlook.limit or candidates)
        self.whole: Pool | None = None
        self.rows: dict[bytes, list[int]] = {}  # of the whole, by network
        if space.n_designs <= (self.outlook.limit or MAX_ENUMERATED):
            self.whole = self._pool(space.enumerate())
            for row, encoding in enumerate(self.whole.encodings):
                self.rows.setdefault(self._key(encoding), []).append(row)
        self.rng = np.random.default_rng(seed)
        origin = np.zeros((1, len(space)), np.int64)
        sizes = [block.shape[1] for block in self._blocks(origin)]
        n_decisions = len(sizes) - len(self.outlook.features(origin))
        self.models = [GaussianProcess(sizes, n_decisions) for _ in range(self.outlook.n_measured)]
        self.n_fitted = 0  # results at the last fit of hyperparameters
        self.encodings: list[np.ndarray] = []  # of the results, as told
        self.measured: list[np.ndarray] = []  # what training gave; NaN where it failed
        self.objectives: list[np.ndarray] = []  # as told; NaN where it failed or broke a constraint
        self.pending: list[np.ndarray] = []  # asked for, not told
        self.met: set[bytes] = set()  # networks proposed or told

    # -- the contract ----------------------------------------------------------------------------

    def ask(self, n: int) -> list[Proposal]:
        measured = np.array(self.measured).reshape(-1, self.outlook.n_measured)
        n_complete = (~np.isnan(measured).any(axis=1)).sum()
        n_random = max(self.n_start - n_complete - len(self.pending), 0) if n_complete > 1 else n
        rows = [self._random() for _ in range(min(n_random, n))]
        if len(rows) < n:
            with blas().limit(limits=1):
                rows += self._guided(n - len(rows))
        return [Proposal(row) for row in rows]

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        objectives = check_told(trials, objectives, self.n_objectives)
        measured = self.outlook.measured(trials, objectives)
        least, most = self.outlook.bounds.T
        broken = ((measured < least) | (measured > most)).any(axis=1)
        objectives = np.where(broken[:, None], np.nan, objectives)
        for trial, values, seen in zip(trials, objectives, measured, strict=True):
            encoding = trial.proposal.encoding
            self.met.add(self._key(encoding))
            self.pending = [p for p in self.pending if (p != encoding).any()]
            self.encodings.append(encoding)
            self.measured.append(seen)
            self.objectives.append(values)

    def state(self) -> State:
        d, m, u = len(self.space), self.n_objectives, self.outlook.n_measured
        small = np.min_scalar_type(int(self.space.sizes.max()))
        measured = np.array(self.measured, float).reshape(-1, u)
        objectives = np.array(self.objectives, float).reshape(-1, m)
        return {
            "rng": self.rng.bit_generator.state,
            "encodings": np.array(self.encodings, small).reshape(-1, d).view(Grown),
            "pending": np.array(self.pending, small).reshape(-1, d),
            "measured": np.nan_to_num(measured).view(Grown),
            "unmeasured": np.isnan(measured).view(Grown),
            "objectives": np.nan_to_num(objectives).view(Grown),
            "unrewarded": np.isnan(objectives).view(Grown),
            "params": np.array([model.params for model in self.models]),
            "n_fitted": self.n_fitted,
        }

    def restore(self, state: State) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.encodings = list(state["encodings"].astype(np.int64))
        self.pending = list(state["pending"].astype(np.int64))
        self.measured = list(np.where(state["unmeasured"], np.nan, state["measured"]))
        self.objectives = list(np.where(state["unrewarded"], np.nan, state["objectives"]))
        for model, params in zip(self.models, state["params"], strict=True):
            model.params = params.copy()
        self.n_fitted = state["n_fitted"]
        self.met = {self._key(encoding) for encoding in self.encodings + self.pending}

    # -- designs ---------------------------------------------------------------------------------

    def _key(self, encoding: np.ndarray) -> bytes:
        return encoding[self.outlook.columns].tobytes()

    def _keys(self, encodings: np.ndarray) -> list[bytes]:
        return [row.tobytes() for row in encodings[:, self.outlook.columns]]

    def _blocks(self, encodings: np.ndarray) -> list[np.ndarray]:
        """Features of the networks: a block a decision, then the outlook's; [n, f] each.

        Names are one-hot; of numbers each value counts all those below it (a thermometer), so that
        distance is the share of the steps between; "off" is a column of its own.
        """
        active = self.space.active(encodings)
        blocks = []
        for i in self.outlook.columns:
            size = int(self.space.sizes[i])
            if size == 1 and not self.space.conditions[i]:
                continue
            on, column = active[:, i, None], encodings[:, i, None]
            if self.space.decisions[i].ordered and size > 1:
                block = (column >= np.arange(1, size)) / np.sqrt(size - 1)
            else:
                block = (column == np.arange(size)) / np.sqrt(2)
            if self.space.conditions[i]:
                block = np.hstack([np.where(on, block, 0), ~on / np.sqrt(2)])
            blocks.append(block)
        return blocks + self.outlook.features(encodings)

    def _pool(self, encodings: np.ndarray) -> Pool:
        _, known = self.outlook.variants(encodings)
        return Pool(encodings, np.hstack(self._blocks(encodings)).astype(np.float32), known)

    def _random(self) -> np.ndarray:
        """A random design, new and not ruled out where one can be found: int64 [d]."""
        for _ in range(REDRAWS):
            rows = self.space.sample(8, self.rng)
            rows = np.array([row for row in rows if self._key(row) not in self.met], np.int64)
            if not len(rows):
                continue
            variants, known = self.outlook.variants(rows)
            allowed = np.argwhere(~np.isnan(known).any(axis=2))
            if len(allowed):
                row, k = allowed[0, 0], self.rng.choice(allowed[allowed[:, 0] == allowed[0, 0], 1])
                return self._propose(variants[row, k])
        if self.whole is not None:
            left = self._open(self.whole)
            if len(left):
                return self._propose(self.whole.encodings[self.rng.choice(left)])
        return self._propose(self.space.sample(1, self.rng)[0])

    def _propose(self, encoding: np.ndarray) -> np.ndarray:
        self.met.add(self._key(encoding))
        self.pending.append(encoding)
        return encoding

    def _open(self, pool: Pool) -> np.ndarray:
        """Which rows of a pool are new and not ruled out: int [.]."""
        fits = ~np.isnan(pool.known).any(axis=2).all(axis=1)
        if pool is self.whole:
            met = [row for key in self.met for row in self.rows.get(key, ())]
            fits[met] = False
        else:
            fits &= [key not in self.met for key in self._keys(pool.encodings)]
        return np.flatnonzero(fits)

    def _changed(self, parents: np.ndarray, n: int) -> np.ndarray:
        """Up to `n` different new networks, changes of `parents`: int64 [., d]."""
        rows = mutate(np.resize(parents, (n, len(self.space))), self.space, self.rng)
        new = dict(zip(self._keys(rows), rows, strict=True))
        rows = [row for key, row in new.items() if key not in self.met]
        return np.array(rows, np.int64).reshape(-1, len(self.space))

    # -- the choice ------------------------------------------------------------------------------

    def _guided(self, n: int) -> list[np.ndarray]:
        """The `n` designs of the greatest expected improvement, each given those before it."""
        self._learn()
        reached = self._reached()
        if self.whole is not None:
            pool = self.whole
            believed = [self.rows[self._key(row)][0] for row in self.pending]
        else:
            evolved = self._evolved(reached)
            pending = np.array(self.pending, np.int64).reshape(-1, len(self.space))
            pool = Pool.concat(evolved, self._pool(pending))
            believed = range(len(evolved.encodings), len(pool.encodings))
        prospects = self._prospects(pool, reached)
        for row in believed:
            prospects.believe(row)
        rows = []
        for i in range(n):
            left = self._open(pool)
            if not len(left):
                rows.append(self._random())
                continue
            best = prospects.best(left)
            rows.append(self._propose(prospects.best_variant(best)))
            if i < n - 1:
                prospects.believe(best)
        return rows

    def _prospects(self, pool: Pool, reached: np.ndarray) -> Prospects:
        return Prospects(pool, self.models, self.outlook, reached, self.rng)

    def _reached(self) -> np.ndarray:
        """The front that the best results reach on all their variants: objectives [k, m].

        Cut off as for the models, which else would promise of a bad design's like the cut."""
        rows = self._elite(MAX_POINTS)
        told = np.array(self.objectives)[rows]
        rows = rows[~np.isnan(told).any(axis=1)]
        measured = np.fmax(np.array(self.measured)[rows], self.cut)
        _, known = self.outlook.variants(np.array(self.encodings)[rows])
        points = self.outlook.objectives(measured[:, None], known).reshape(-1, self.n_objectives)
        return points[pareto.front(points)]

    def _learn(self) -> None:
        """Condition the models on all results; now and then fit their hyperparameters anew."""
        encodings, measured = np.array(self.encodings), np.array(self.measured)
        best, middle = np.nanmax(measured, axis=0), np.nanmedian(measured, axis=0)
        cut = middle - (CUT if self.n_objectives == 1 else CUT_OF_FRONTS) * (best - middle)
        # below what a constraint asks for, which else would seem to be kept
        least = self.outlook.bounds[:, 0]
        self.cut = np.where(least > -np.inf, np.minimum(cut, least - (best - middle)), cut)
        measured = np.fmax(measured, self.cut)
        x = np.hstack(self._blocks(encodings))
        inducing = np.arange(len(x))
        if len(x) > MAX_POINTS:  # half of them the best, the others spread over the run
            elite = self._elite(MAX_POINTS // 2)
            others = np.delete(inducing, elite)
            spread = np.linspace(0, len(others) - 1, MAX_POINTS - len(elite)).astype(int)
            inducing = np.concatenate([elite, others[spread]])
        refit = len(x) >= REFIT * self.n_fitted
        for model, y in zip(self.models, measured.T, strict=True):
            if refit:
                model.fit(x, y, FIT_STEPS)
            model.condition(x, y, inducing)
        self.n_fitted = len(x) if refit else self.n_fitted

    def _elite(self, n: int) -> np.ndarray:
        """The `n` best results, over all directions in turn: int [.].

        While none keeps the constraints, those that miss them by the least."""
        objectives = np.array(self.objectives)
        rows = np.flatnonzero(~np.isnan(objectives).any(axis=1))
        if not len(rows):
            measured = np.array(self.measured)
            least, most = self.outlook.bounds.T
            spread = np.nanstd(measured, axis=0)
            missed = np.maximum(least - measured, measured - most).clip(0)
            missed /= np.where(spread > 0, spread, 1)
            return np.argsort(missed.sum(axis=1), kind="stable")[:n]  # NaN comes last
        low, high = objectives[rows].min(axis=0), objectives[rows].max(axis=0)
        values = Scalarization(low, high, self.rng)(objectives[rows])
        n_each = min(n, len(rows))
        top = np.argpartition(-values, n_each - 1, axis=0)[:n_each]
        order = np.argsort(-np.take_along_axis(values, top, axis=0), axis=0)
        ranked = np.take_along_axis(top, order, axis=0).ravel()
        _, first = np.unique(ranked, return_index=True)
        return rows[ranked[np.sort(first)[:n]]]

    def _evolved(self, reached: np.ndarray) -> Pool:
        """Changes of the best results and random designs, then changes of the best of those."""
        n = self.n_candidates
        parents = np.array(self.encodings)[self._elite(N_PARENTS)]
        pool = self._pool(
            np.concatenate(
                [
                    self._changed(parents, n // 2),
                    self._changed(self.space.sample(n // 4, self.rng), n // 4),
                ]
            )
        )
        rows = self._open(pool)
        if not len(rows):
            return pool
        optimistic = self._prospects(pool, reached).optimistic(rows)
        parents = pool.encodings[rows[np.argsort(-optimistic, kind="stable")[:N_PARENTS]]]
        return Pool.concat(pool, self._pool(self._changed(parents, n // 4)))
