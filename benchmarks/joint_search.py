"""What searching network, bits, batch and accelerator together gives, where the truth is known.

    python benchmarks/joint_search.py [--table ../shared/data/nas_bench_201.csv.gz] [--quick]

The space: all 15,625 cells of NAS-Bench-201 in its own networks (16 channels, 5 cells a stage,
32x32), weights and activations of 2, 3 or 8 bits in each of three stages, serving batches of 1, 4
or 16, and 1,152 systolic accelerators: 3.9e10 designs. A training is of a network at its bits and
gives the cell's accuracy in the table (CIFAR-10, 200 epochs, test) less a penalty for its bits. The
price is the hardware model's: latency of a batch and energy of an image. Both are sums over the
steps of a network, so that a few steps priced on every accelerator price all designs, and the exact
front is found by counting through.

The penalty is that of ResNet-20 on CIFAR-10 in LQ-Nets (Zhang et al., 1807.10029): its 92.1 %
become 91.8 with 2-bit weights and 92.0 with 3, and 90.2 and 91.6 with activations of as many bits
too, which leaves 1.6 and 0.4 points to the activations. 8 bits cost nothing. That the points add
up, a third a stage, and are the same for every cell are assumptions.

The front is over accuracy, latency and area, as in the first enumeration of such a space
(Abdelfattah et al., 2002.05022), or over accuracy, latency and energy. Costs count by their
logarithm, since they span orders of magnitude and the slowest designs would decide otherwise; a
table with the costs themselves shows what that changes. Hypervolumes are shares of the exact
front's, above a reference a tenth of the front's extent worse than its worst values. All
contestants have the same controller, our default, in the real loop, and equal trainings:

joint                      network, bits, batch and accelerator together; "without the sweep" counts
                           the designs as proposed, else every trained network counts on every
                           accelerator
first network, ...         the search is for accuracy, or for accuracy and few bit operations; then
                           the best network, or all of them, on every accelerator at every batch
fixed hardware, ...        network, bits and batch, on the accelerator of the middle area, or on the
                           one of the exact front that could reach most if all was known
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hwmodel
from benchmarks.search_efficiency import Table
from hwmodel import Layers
from nas import controllers, pareto
from nas.compare import MARGIN, band
from nas.executor import InProcess
from nas.outlook import Priced
from nas.reward import Pareto
from nas.search import Search
from nas.store import Store
from nas.trial import Metrics, Trial
from search_spaces import Space, cell, hardware, joint
from search_spaces.ops import Precision, rows_of
from search_spaces.precision import GROUPS
from search_spaces.quantizers import UnbuildableError
from search_spaces.space import Choices

BITS = (2, 3, 8)
LOST = {  # points of accuracy, at so many bits in all stages
    "weights": {2: 0.3, 3: 0.1, 8: 0.0},
    "activations": {2: 1.6, 3: 0.4, 8: 0.0},
}
PAIRS = [(weights, activations) for weights in BITS for activations in BITS]
STAGES = range(3)
ENDS = GROUPS.index("ends")
EDGES = [f"cell.edge{i}{j}" for i, j in cell.EDGES]
VALUES = {
    "cell.width": 16,
    "cell.depth": 5,
    "cell.resolution": 32,
    **{f"bits.{operand}.stage{s}": list(BITS) for operand in LOST for s in STAGES},
    "bits.ends": 8,
    "train.batch": 128,
    "train.learning_rate": 0.1,
    "train.warmup": 0.1,
    "serve.batch": [1, 4, 16],
    "hw.rows": [8, 16, 32, 64],
    "hw.columns": [8, 16, 32, 64],
    "hw.weight_plane": True,
    "hw.multiplier": ["fixed8", "composable", "bit-serial"],
    "hw.sram_input_kib": 64,
    "hw.sram_weight_kib": [64, 256],
    "hw.sram_output_kib": 64,
    "hw.bandwidth_gbps": [4, 16],
    "hw.clock_mhz": [200, 700],
}
COSTS = ("latency_s", "energy_j")  # of a network on an accelerator; the area is of this alone
LOG = "log_"  # before a cost's name: its decimal logarithm
GOALS = (
    Pareto(objectives=("accuracy", "-log_latency_s", "-log_area_mm2")),
    Pareto(objectives=("accuracy", "-log_latency_s", "-log_energy_j")),
    Pareto(objectives=("accuracy", "-latency_s", "-area_mm2")),
)
ACCURACY = Pareto(objectives=("accuracy",))
BIT_OPERATIONS = "bit_operations"  # multiply-accumulates times both widths: of no accelerator
FRUGAL = Pareto(objectives=("accuracy", f"-{LOG}{BIT_OPERATIONS}"))
N_PIVOTS = 64  # points that others are compared with before the exact front is taken
CHUNK = 16  # accelerators counted through at once
IN_FLIGHT = 4  # as a run has by default
BUDGETS = (15, 30, 60)


class Grid:
    """Every design of the space, looked up: accuracies, costs, and the exact front.

    accuracies: of each cell in 8 bits, float [15,625], a share of 1, in the order of its edges.
    values: as `Space.restrict` takes them; all decisions but edges, bits, serving batch and
    accelerator have one value.
    """

    def __init__(self, accuracies: np.ndarray, values: Mapping = VALUES):
        self.space = joint("cell").restrict(values)
        self.accuracies = accuracies
        self.hardware, self.accelerators, self.configs = hardware.every(self.space)
        column = self.space.column
        self.hw = [column[name] for name in self.hardware.names]
        self.edges = [column[name] for name in EDGES]
        self.bits = [[column[f"bits.{operand}.stage{s}"] for operand in LOST] for s in STAGES]
        self.batches = self.space.decisions[column["serve.batch"]].values
        self.steps, self.classes, self.counts = self._counted()
        self.group = np.array([group for _, _, group in self.steps])
        self.prices, self.bit_operations, self.ends, self.areas = self._priced()
        # of all networks of a cell, the points that a pair of bits costs in one stage
        points = [LOST["weights"][w] + LOST["activations"][a] for w, a in PAIRS]
        self.penalties = np.array(points) / 100 / len(STAGES)

    def _counted(self) -> tuple[list[tuple], np.ndarray, np.ndarray]:
        """The kinds of steps; the class of each cell, -1 for one that leads nowhere; how many steps
        of each kind the cells of a class have: int [classes, steps]."""
        first = self.space.decode(np.zeros(len(self.space), int))
        kinds: dict[tuple, int] = {}
        found: dict[tuple, int] = {}
        classes = np.full(len(self.accuracies), -1)
        operations = [self.space.decisions[c].values for c in self.edges]
        for i, row in enumerate(np.ndindex(*map(len, operations))):
            chosen = {name: of[k] for name, of, k in zip(EDGES, operations, row, strict=True)}
            try:
                network = cell.network(first | chosen)
            except UnbuildableError:
                continue
            steps = Counter(
                kinds.setdefault((step.op, tuple(inputs), step.group), len(kinds))
                for step, inputs in zip(network.steps, network.inputs, strict=True)
            )
            classes[i] = found.setdefault(tuple(sorted(steps.items())), len(found))
        counts = np.zeros((len(found), len(kinds)), int)
        for i, steps in enumerate(found):
            columns, n = np.array(steps).T
            counts[i, columns] = n
        return list(kinds), classes, counts

    def _priced(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What a step of each kind adds to a network: float [costs, batches, pairs, steps,
        accelerators]; its bit operations an image [pairs, steps]; what the ends of a network cost,
        its first fill and last drain included: [costs, batches, accelerators]; areas in mm2."""
        stem, *rest = [step for step in self.steps if step[2] == ENDS]

        def rows(step, pair, batch) -> list:
            op, inputs, _ = step
            return rows_of("", op, inputs, Precision(*pair), batch)

        shape = len(COSTS), len(self.batches), len(PAIRS), len(self.steps), len(self.configs)
        added = np.zeros(shape)
        operations = np.zeros((len(PAIRS), len(self.steps)))
        ends = np.zeros((len(COSTS), len(self.batches), len(self.configs)))
        for b, batch in enumerate(self.batches):
            begin, *others = [rows(step, (8, 8), batch) for step in (stem, *rest)]
            frame = [*begin, *(row for each in others for row in each)]
            tables = [Layers.from_rows(frame)]
            places = []
            for p, pair in enumerate(PAIRS):
                for k, step in enumerate(self.steps):
                    between = rows(step, pair, batch)
                    if step[2] != ENDS and between:
                        tables.append(Layers.from_rows([frame[0], *between, *frame[1:]]))
                        places.append((p, k))
            cost = hwmodel.price(Layers.concat(tables), self.configs)
            if not cost.feasible.all():
                raise ValueError("some of these accelerators cannot run some of these networks")
            at = tuple(np.array(places).T)
            for c, values in enumerate((cost.latency_s, cost.energy_j / batch)):
                ends[c, b] = values[0]
                added[(c, b, *at)] = values[1:] - values[0]
            macs = np.array([float(table.macs[0]) for table in tables])
            operations[at] = (macs[1:] - macs[0]) / batch
        widths = np.prod(PAIRS, axis=1)
        return added, operations * widths[:, None], ends, cost.area_mm2[0]

    # -- looking up ------------------------------------------------------------------------------

    def number(self, encodings: np.ndarray) -> np.ndarray:
        """The numbers of accelerators, from encodings of their decisions [n, .]: int [n]."""
        known, asked = (
            np.ravel_multi_index(tuple(rows.T), tuple(self.hardware.sizes))
            for rows in (self.accelerators, encodings)
        )
        return np.searchsorted(known, asked)  # they are enumerated in order

    def _cells(self, encodings: np.ndarray) -> np.ndarray:
        sizes = tuple(self.space.sizes[self.edges])
        return np.ravel_multi_index(tuple(encodings[:, self.edges].T), sizes)

    def _pairs(self, encodings: np.ndarray) -> np.ndarray:
        """The pair of bits in each stage: int [n, stages]."""
        return np.column_stack(
            [encodings[:, w] * len(BITS) + encodings[:, a] for w, a in self.bits]
        )

    def accuracy(self, encodings: np.ndarray) -> np.ndarray:
        """A share of 1, NaN for a cell that leads nowhere: float [n]."""
        cells = self._cells(encodings)
        found = self.accuracies[cells] - self.penalties[self._pairs(encodings)].sum(axis=1)
        return np.where(self.classes[cells] < 0, np.nan, found)

    def _steps(self, encodings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(pair of bits of each step, how often it occurs) in each network: int [n, steps]."""
        stages = np.minimum(self.group, STAGES[-1])  # the ends are priced apart
        return self._pairs(encodings)[:, stages], self.counts[self.classes[self._cells(encodings)]]

    def costs(self, encodings: np.ndarray, accelerators: np.ndarray) -> dict[str, np.ndarray]:
        """Latency, energy and area of networks [n, d] on accelerators [k], and bit operations:
        float [n, k] each, NaN for a cell that leads nowhere."""
        pairs, counts = self._steps(encodings)
        batch = encodings[:, self.space.column["serve.batch"]]
        found = np.empty((len(COSTS), len(encodings), len(accelerators)))
        for i, b in enumerate(batch):
            used = np.flatnonzero(counts[i])
            added = self.prices[:, b, pairs[i, used], used][..., accelerators]
            found[:, i] = counts[i, used] @ added + self.ends[:, b][:, accelerators]
        found[:, self.classes[self._cells(encodings)] < 0] = np.nan
        operations = (counts * self.bit_operations[pairs, np.arange(len(self.steps))]).sum(axis=1)
        return {
            **dict(zip(COSTS, found, strict=True)),
            "area_mm2": np.broadcast_to(self.areas[accelerators], found[0].shape),
            BIT_OPERATIONS: np.broadcast_to(operations[:, None], found[0].shape),
        }

    # -- the truth -------------------------------------------------------------------------------

    def front(
        self, goals: Pareto, only: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The objectives of every design that no other beats, [n, 3], and their accelerators [n];
        of all accelerators, or of some only."""
        best, kept = self.best
        first, second, third = np.ix_(self.penalties, self.penalties, self.penalties)
        accuracy = best[kept, None, None, None] - (first + second + third)
        points, numbers = np.empty((0, goals.n_objectives)), np.empty(0, int)
        wanted = np.arange(len(self.configs)) if only is None else np.asarray(only)
        for some in chunks(wanted):
            stages = np.moveaxis(self._stages(kept, some), -1, 0)
            for number, costs in zip(some, stages, strict=True):
                for b in range(len(self.batches)):
                    of = costs[:, b]  # [costs, classes, stages, pairs]
                    total = (
                        self.ends[:, b, number, None, None, None, None]
                        + of[:, :, 0, :, None, None]
                        + of[:, :, 1, None, :, None]
                        + of[:, :, 2, None, None, :]
                    )
                    metrics = dict(zip(COSTS, total, strict=True)) | {
                        "accuracy": accuracy,
                        "area_mm2": np.broadcast_to(self.areas[number], accuracy.shape),
                    }
                    new = goals.of(columns(metrics, goals.needs).reshape(-1, goals.n_objectives))
                    new = new[unbeaten(new, points)]
                    points = np.concatenate([points, new])
                    numbers = np.concatenate([numbers, np.full(len(new), number)])
            on_front = pareto.front(points)
            points, numbers = points[on_front], numbers[on_front]
        return points, numbers

    def _stages(self, classes: np.ndarray, accelerators: np.ndarray) -> np.ndarray:
        """COSTS of each stage in each pair of bits: float [costs, batches, classes, stages, pairs,
        accelerators]."""
        found = []
        for s in STAGES:
            kinds = np.flatnonzero(self.group == s)
            counts = self.counts[np.ix_(classes, kinds)].astype(float)
            prices = self.prices[:, :, :, kinds][..., accelerators]
            found.append(np.moveaxis(counts @ prices, 2, 3))  # [costs, batches, classes, pairs, .]
        return np.stack(found, axis=3)

    @cached_property
    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The best accuracy of each class of cells, and the classes that no other equals in it and
        in every price of every stage: no other is needed for the front."""
        best = np.full(len(self.counts), -np.inf)
        built = self.classes >= 0
        np.maximum.at(best, self.classes[built], self.accuracies[built])
        order = np.argsort(-best, kind="stable")
        better, worse = np.triu_indices(len(order), 1)
        better, worse = order[better], order[worse]
        everything = np.arange(len(best))
        for some in chunks(np.arange(len(self.configs))):
            stages = np.moveaxis(self._stages(everything, some), 2, 0).reshape(len(best), -1)
            for columns in np.array_split(stages, CHUNK, axis=1):
                cheaper = (columns[better] <= columns[worse]).all(axis=1)
                better, worse = better[cheaper], worse[cheaper]
        return best, np.setdiff1d(everything, worse)


def chunks(numbers: np.ndarray) -> list[np.ndarray]:
    """Parts of at most CHUNK."""
    return np.array_split(numbers, -(-len(numbers) // CHUNK))


def columns(metrics: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Metrics side by side, [..., names], logarithms taken."""
    found = [
        np.log10(metrics[name.removeprefix(LOG)]) if name.startswith(LOG) else metrics[name]
        for name in names
    ]
    return np.stack(found, axis=-1)


def unbeaten(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which points none of them beats, nor a few of the others equals: int [.]."""
    pivots = others[np.linspace(0, len(others) - 1, min(N_PIVOTS, len(others))).astype(int)]
    left = np.arange(len(points))
    for pivot in pivots:
        left = left[(points[left] > pivot).any(axis=1)]
    return left[pareto.front(points[left])]


# -- contestants -----------------------------------------------------------------------------------


class Known(Priced):
    """The outlook of a search over the grid's space or a part of it: prices are looked up."""

    def __init__(self, grid: Grid, space: Space, reward: Pareto):
        super().__init__("cell", space, reward, [])
        self.grid = grid
        self.own = {  # column of the grid's space -> of this one, and its indices there
            i: (space.column[d.name], np.array([d.index(v) for v in values[d.name]]))
            for values in [{d.name: d.values for d in space.decisions}]
            for i, d in enumerate(grid.space.decisions)
            if d.name in values
        }

    def networks(self, encodings: np.ndarray) -> np.ndarray:
        """Encodings as the grid has them: int64 [n, d]."""
        rows = np.zeros((len(encodings), len(self.grid.space)), np.int64)
        for i, (column, index) in self.own.items():
            rows[:, i] = index[encodings[:, column]]
        return rows

    def numbers(self, encodings: np.ndarray) -> np.ndarray:
        """The accelerators of whole encodings."""
        return self.grid.number(self.networks(encodings)[:, self.grid.hw])

    def _configs(self, encodings: np.ndarray) -> np.ndarray:
        whole = np.zeros((len(encodings), len(self.space)), np.int64)
        whole[:, self.hardware] = encodings
        return self.numbers(whole)

    def _price(self, encodings: np.ndarray, configs: np.ndarray) -> np.ndarray:
        figures = self.grid.costs(self.networks(encodings), configs)
        figures["nothing"] = np.where(np.isnan(figures["latency_s"]), np.nan, 0.0)
        return columns(figures, [*self.costs, "nothing"])


class Lookup:
    """The evaluator: what a training would give."""

    def __init__(self, grid: Grid, known: Known):
        self.grid, self.known = grid, known

    def start(self) -> None:
        """All is there."""

    def evaluate(self, choices: Choices, *, seed: int) -> Metrics:
        encoding = self.known.space.encode(choices)[None]
        return {"accuracy": float(self.grid.accuracy(self.known.networks(encoding))[0])}

    def price(self, designs: Sequence[Choices]) -> list[tuple[Metrics, str | None]]:
        encodings = np.array([self.known.space.encode(choices) for choices in designs])
        networks, numbers = self.known.networks(encodings), self.known.numbers(encodings)
        found = []
        for row, number in zip(networks, numbers, strict=True):
            figures = self.grid.costs(row[None], number[None])
            if np.isnan(figures["latency_s"]).any():
                found.append(({}, "the cell leads nowhere"))
                continue
            names = [*figures, *(f"{LOG}{name}" for name in figures)]
            values = columns(figures, names)[0, 0].tolist()
            found.append((dict(zip(names, values, strict=True)), None))
        return found


def search(grid: Grid, space: Space, reward: Pareto, n_trials: int, seed: int) -> list[Trial]:
    """The trainings of one search by the default controller, in the order of asking."""
    known = Known(grid, space, reward)
    lookup, store = Lookup(grid, known), Store(None)
    Search(
        price=lookup.price,
        space=space,
        controller=controllers.make(
            "surrogate", space, seed=seed, n_objectives=reward.n_objectives, outlook=known
        ),
        reward=reward,
        constraints=[],
        executor=InProcess(lookup),
        store=store,
        n_trials=n_trials,
        in_flight=IN_FLIGHT,
        seed=seed,
        out_of_time=lambda: False,
        watch=lambda trial: None,
    ).run()
    trials = store.trials("status = 'complete' AND repeats IS NULL")
    store.close()
    return trials


def reached(
    grid: Grid, goals: Pareto, networks: np.ndarray, accelerators: np.ndarray, batches: bool = False
) -> np.ndarray:
    """Objectives of trained networks [n, d] on each of some accelerators, [k] or one each [n, 1],
    at their own serving batch or at all: [points, 3]."""
    if batches:
        rows = [networks.copy() for _ in grid.batches]
        for b, each in enumerate(rows):
            each[:, grid.space.column["serve.batch"]] = b
        networks = np.concatenate(rows)
    accelerators = np.broadcast_to(accelerators, (len(networks), np.shape(accelerators)[-1]))
    found = []
    for row, numbers, accuracy in zip(networks, accelerators, grid.accuracy(networks), strict=True):
        figures = grid.costs(row[None], numbers) | {
            "accuracy": np.full((1, len(numbers)), accuracy)
        }
        points = goals.of(columns(figures, goals.needs)[0])
        found.append(points[pareto.front(points)])
    return np.concatenate(found)


class Trained:
    """The trainings of one search, and what they reach by hardware."""

    def __init__(self, grid: Grid, space: Space, reward: Pareto, seed: int):
        trials = search(grid, space, reward, BUDGETS[-1], seed)
        known, encodings = Known(grid, space, reward), [t.proposal.encoding for t in trials]
        self.grid = grid
        self.networks = known.networks(np.array(encodings))
        self.numbers = known.numbers(np.array(encodings))
        self.every = np.arange(len(grid.configs))

    def proposed(self, goals: Pareto, n: int) -> np.ndarray:
        """The objectives of the first `n` designs, as they were proposed."""
        return reached(self.grid, goals, self.networks[:n], self.numbers[:n, None])

    def swept(self, goals: Pareto, n: int) -> np.ndarray:
        """Of the first `n` networks, on every accelerator."""
        return reached(self.grid, goals, self.networks[:n], self.every)

    def best(self, goals: Pareto, n: int) -> np.ndarray:
        """Of the most accurate of them, on every accelerator at every batch."""
        best = int(self.grid.accuracy(self.networks[:n]).argmax())
        return reached(self.grid, goals, self.networks[best : best + 1], self.every, batches=True)

    def all(self, goals: Pareto, n: int) -> np.ndarray:
        """Of the first `n` networks, on every accelerator at every batch."""
        return reached(self.grid, goals, self.networks[:n], self.every, batches=True)


class Truth(NamedTuple):
    """The exact front's volume above a reference [3]; its accelerators [.], each once."""

    volume: float
    reference: np.ndarray
    numbers: np.ndarray

    def share(self, points: np.ndarray) -> float:
        return pareto.hypervolume(points, self.reference) / self.volume


def truth_of(grid: Grid, goals: Pareto) -> Truth:
    points, numbers = grid.front(goals)
    worst, best = points.min(axis=0), points.max(axis=0)
    reference = worst - MARGIN * (best - worst)
    volume = pareto.hypervolume(points, reference)
    numbers = np.unique(numbers)
    print(f"  the exact front: {len(points):,} designs on {len(numbers)} accelerators")
    return Truth(volume, reference, numbers)


def fixed(grid: Grid, number: int) -> Space:
    """The grid's space with one accelerator."""
    chosen = grid.hardware.decode(grid.accelerators[number])
    left_out = {name for name in grid.hardware.names if name not in chosen}
    values = {d.name: list(d.values) for d in grid.space.decisions if d.name not in left_out}
    return joint("cell").restrict(values | chosen)


def compare(grid: Grid, goals: Pareto, seeds: int, first: Mapping[Pareto, list[Trained]]) -> None:
    """Print one table; first: the searches for a network, a seed each."""
    print(f"\n{', '.join(goals.names)}", flush=True)
    truth = truth_of(grid, goals)
    middle = int(np.argsort(grid.areas, kind="stable")[len(grid.areas) // 2])
    limits = {k: truth.share(grid.front(goals, [k])[0]) for k in {middle, *truth.numbers.tolist()}}
    best = max(limits, key=limits.get)
    for name, number in (("middle", middle), ("best", best)):
        limit = limits[number]
        print(f"  the {name} accelerator alone could reach {limit:.3f}: {words_of(grid, number)}")
    rows: dict[str, list[list[float]]] = {}

    def enter(name: str, points: Callable[[Pareto, int], np.ndarray]) -> None:
        shares = [truth.share(points(goals, n)) for n in BUDGETS]
        rows.setdefault(name, []).append(shares)

    for seed in range(seeds):
        together = Trained(grid, grid.space, goals, seed)
        enter("joint", together.swept)
        enter("joint, without the sweep", together.proposed)
        enter("first network, then hardware", first[ACCURACY][seed].best)
        enter("first network, hardware for all", first[ACCURACY][seed].all)
        enter("first frugal network, hardware for all", first[FRUGAL][seed].all)
        for name, number in (("the middle", middle), ("the best", best)):
            alone = Trained(grid, fixed(grid, number), goals, seed)
            enter(f"fixed hardware, {name}", alone.proposed)
    print(f"{'share of the exact hypervolume after':48s}" + "".join(f"{n:>15}" for n in BUDGETS))
    for name, shares in rows.items():
        middles, halves = band(np.array(shares))
        figures = "".join(f"{m:8.3f} ±{h:5.3f}" for m, h in zip(middles, halves, strict=True))
        print(f"{name:48s}{figures}")
    ours = np.mean(rows["joint"], axis=0)
    for name, shares in rows.items():
        if name != "joint":
            gains = 100 * (ours / np.mean(shares, axis=0) - 1)
            print(f"{'  joint over ' + name:48s}" + "".join(f"{g:+14.1f}%" for g in gains))
    sys.stdout.flush()


def words_of(grid: Grid, number: int) -> str:
    chosen = grid.hardware.decode(grid.accelerators[number])
    return ", ".join(f"{name.removeprefix('hw.')} {value}" for name, value in chosen.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1] / "../shared/data/nas_bench_201.csv.gz"
    parser.add_argument("--table", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="2 seeds, the first front only")
    arguments = parser.parse_args()
    if not arguments.table.is_file():
        print(f"no table at {arguments.table}: nothing is measured", file=sys.stderr)
        return
    begun = time.process_time()
    seeds = 2 if arguments.quick else arguments.seeds
    grid = Grid(Table(arguments.table)["cifar10_test200"] / 100)
    print(f"{grid.space.n_designs:.3g} designs, {len(grid.configs):,} accelerators; {seeds} seeds")
    first = {
        reward: [Trained(grid, grid.space, reward, seed) for seed in range(seeds)]
        for reward in (ACCURACY, FRUGAL)
    }
    for goals in GOALS[:1] if arguments.quick else GOALS:
        compare(grid, goals, seeds, first)
    print(f"\n{time.process_time() - begun:.0f} CPU seconds")


if __name__ == "__main__":
    main()
