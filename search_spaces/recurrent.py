"""Language models: an embedding, a recurrent cell that is searched, and scores of the next word.

Three kinds of cells, and two known ones as points beside them:

dag    nodes, each with a predecessor and an activation, as ENAS (Pham et al., 1802.03268, section
       2.1) and DARTS (Liu et al., 1806.09055, section 3.2): a node is its predecessor, moved
       towards the activation of a product of it by a highway gate; the output is the mean of the
       nodes that no other reads.
tree   the cell of Zoph and Le (1611.01578, section 3.4): leaves combine a product of the input
       and one of the state, by addition or multiplication, inner nodes combine two nodes; an old
       memory cell joins one leaf, and the new one is a node's value before its activation.
lstm   Hochreiter and Schmidhuber (1997), with a forget bias of 1; gru: Cho et al. (1406.1078), the
       reset after the product, as cuDNN has it.

The input's share of all sums is one product over all words; what reads the state waits in turn.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from functools import reduce

from hwmodel.workload import Layers
from search_spaces.compression import UNCOMPRESSED, Compression
from search_spaces.memory import MEMORIES, CachedOutput, Experts
from search_spaces.network import Step
from search_spaces.precision import BITS, RANKS, TEXT_BITS, TEXT_GROUPS, precisions
from search_spaces.sequence import FUNCTIONS, Embedding, LanguageModel, Operation, Output
from search_spaces.space import Choices, Decision, Space

MOST_NODES = 12
LEAVES = (2, 4, 8)
COMBINATIONS = ("add", "multiply")
ACTIVE = (1, 2, 4)  # of the experts, for each word
SOME = *MEMORIES, "cache"  # kinds of memory
MANY = tuple(2**b for b in range(1, 12))  # of one expert there is nothing to choose: none is built
SPARSE = tuple(n for n in MANY if n > max(ACTIVE))  # where all are active, loads are even
CODED = tuple(bits for bits in BITS if 2**bits > 64)  # that a codebook is of
EMBEDDING, RECURRENT, OUTPUT = range(3)  # places in TEXT_GROUPS


def _dag() -> list[Decision]:
    dag = {"rnn.cell": ("dag",)}
    found = [
        Decision("dag.nodes", tuple(range(1, MOST_NODES + 1)), dag),
        Decision("dag.gates", ("highway", "none"), dag, usual=("highway",)),
    ]
    for i in range(MOST_NODES):
        there = dag if i == 0 else dag | {"dag.nodes": tuple(range(i + 1, MOST_NODES + 1))}
        if i > 1:
            found.append(Decision(f"dag.node{i}.from", tuple(range(i)), there))
        found.append(Decision(f"dag.node{i}.function", FUNCTIONS, there))
    return found


def _tree() -> list[Decision]:
    tree = {"rnn.cell": ("tree",)}
    found = [Decision("tree.leaves", LEAVES, tree)]
    for kind, n_more in (("leaf", 0), ("inner", 1)):
        for i in range(LEAVES[-1] - n_more):
            there = tree | {"tree.leaves": tuple(n for n in LEAVES if n - n_more > i)}
            found.append(Decision(f"tree.{kind}{i}.combine", COMBINATIONS, there))
            found.append(Decision(f"tree.{kind}{i}.function", FUNCTIONS, there))
    found += [
        Decision("tree.memory.combine", COMBINATIONS, tree),
        Decision("tree.memory.function", FUNCTIONS, tree),
    ]
    for n in LEAVES:
        there = tree | {"tree.leaves": (n,)}
        found.append(Decision(f"tree.memory.into{n}", tuple(range(n)), there))
        found.append(Decision(f"tree.memory.out{n}", tuple(range(2 * n - 1)), there))
    return found


SPACE = Space(
    [
        Decision("rnn.cell", ("dag", "tree", "lstm", "gru")),
        *_dag(),
        *_tree(),
        Decision("rnn.units", (32, 64, 96, 128, 200, 256, 400, 650)),
        Decision("rnn.layers", (1, 2), usual=(1,)),
        Decision("embed.width", (32, 64, 96, 128, 200, 256, 400, 650)),
        Decision("embed.rank", (0, *RANKS), usual=(0,)),  # of the table; 0: whole
        Decision("embed.tied", (False, True)),  # with the output's
        # what stands between the cells and the output; a cache stands behind it
        Decision("memory.kind", ("none", *SOME), usual=("none",)),
        Decision("memory.slots", tuple(2**b for b in range(4, 13)), {"memory.kind": SOME}),
        Decision("memory.heads", (1, 2, 4), {"memory.kind": ("soft",)}),
        Decision("memory.key", (8, 16, 32, 64), {"memory.kind": ("soft",)}),
        Decision("memory.share", (0.05, 0.1, 0.2, 0.3), {"memory.kind": ("cache",)}),
        Decision("memory.sharpness", (3, 6, 12), {"memory.kind": ("cache",)}, usual=(6,)),
        Decision("experts.n", tuple(2**b for b in range(12)), usual=()),
        Decision("experts.active", ACTIVE, {"experts.n": MANY}),
        Decision("experts.hidden", (32, 64, 128, 256), {"experts.n": MANY}),
        Decision("experts.balance", (0, 0.01, 0.1), {"experts.n": SPARSE}, usual=(0.01,)),
        # of the text, which has one: perplexities of several do not compare
        Decision("text.vocabulary", (1000, 2000, 4000, 10_000, 20_000, 50_000), usual=(10_000,)),
        *TEXT_BITS,
        # entries of the table's; 0: none. Its indices are shorter than the words that they save
        Decision("embed.codebook", (0, 4, 16, 64), {"bits.weights.embedding": CODED}, usual=(0,)),
    ]
)


class Cell(Operation):
    """A recurrent cell: `units` wide; `n_sums` times as wide a product of the input; `n_states` of
    the width are kept from step to step."""

    units: int
    n_sums: int
    n_states = 1

    @property
    def state(self):
        return ((self.units,),) * self.n_states

    def run(self, do, x, state):
        x = do.quantized("input", x)
        sums = do.product("input", x, self.n_sums * self.units, bias=True)
        return do.scan(lambda sums, state: self.step(do, sums, state), sums, state)

    def step(self, do, sums, state) -> tuple:
        """(output, new state) from the input's sums of one step."""
        raise NotImplementedError


@dataclass(frozen=True)
class Dag(Cell):
    """nodes: (predecessor, function) of each after the first, whose function is `first`; highway:
    whether nodes are gated."""

    units: int
    first: str
    nodes: tuple[tuple[int, str], ...]
    highway: bool = True

    @property
    def n_sums(self) -> int:
        return 2 if self.highway else 1

    def step(self, do, sums, state):
        def moved(source, sums, function):
            if not self.highway:
                return do.function(function, sums)
            gate, target = do.split(sums, 2)
            gate = do.function("sigmoid", gate)
            return source + gate * (do.function(function, target) - source)

        wide = self.n_sums * self.units
        [h] = state
        sums = sums + do.product("state", do.quantized("state", h), wide)
        values, entered = [moved(h, sums, self.first)], {}
        for i, (source, function) in enumerate(self.nodes, start=1):
            if source not in entered:
                entered[source] = do.quantized(f"node{source}", values[source])
            sums = do.product(f"node{i}", entered[source], wide)
            values.append(moved(values[source], sums, function))
        ends = [value for i, value in enumerate(values) if i not in entered]
        h = ends[0] if len(ends) == 1 else reduce(lambda a, b: a + b, ends) * (1 / len(ends))
        return h, (h,)


@dataclass(frozen=True)
class Tree(Cell):
    """leaves, inner: (combination, function) of each, inner nodes from the leaves up; memory: the
    same, of what joins the old memory cell to leaf `into`; out: the node, leaves first, whose value
    before its activation is the new one."""

    units: int
    leaves: tuple[tuple[str, str], ...]
    inner: tuple[tuple[str, str], ...]
    memory: tuple[str, str]
    into: int
    out: int
    n_states = 2

    @property
    def n_sums(self) -> int:
        return len(self.leaves)

    def step(self, do, sums, state):
        def combined(how, a, b):
            return a + b if how == "add" else a * b

        h, c = state
        of_input = do.split(sums, self.n_sums)
        of_state = do.product("state", do.quantized("state", h), self.n_sums * self.units)
        of_state = do.split(of_state, self.n_sums)
        before, values = [], []
        for i, (how, function) in enumerate(self.leaves):
            before.append(combined(how, of_input[i], of_state[i]))
            values.append(do.function(function, before[i]))
            if i == self.into:
                how, function = self.memory
                values[i] = do.function(function, combined(how, values[i], c))
        for i, (how, function) in enumerate(self.inner):
            before.append(combined(how, values[2 * i], values[2 * i + 1]))
            values.append(do.function(function, before[-1]))
        return values[-1], (values[-1], before[self.out])


@dataclass(frozen=True)
class Lstm(Cell):
    units: int
    n_sums = 4
    n_states = 2

    def step(self, do, sums, state):
        h, c = state
        sums = sums + do.product("state", do.quantized("state", h), 4 * self.units)
        enter, forget, new, leave = do.split(sums, 4)
        enter, leave = do.function("sigmoid", enter), do.function("sigmoid", leave)
        c = do.function("sigmoid", forget + 1.0) * c + enter * do.function("tanh", new)
        h = leave * do.function("tanh", c)
        return h, (h, c)


@dataclass(frozen=True)
class Gru(Cell):
    units: int
    n_sums = 3

    def step(self, do, sums, state):
        [h] = state
        of_state = do.product("state", do.quantized("state", h), 3 * self.units)
        reset, keep, new = do.split(sums, 3)
        h_reset, h_keep, h_new = do.split(of_state, 3)
        reset = do.function("sigmoid", reset + h_reset)
        keep = do.function("sigmoid", keep + h_keep)
        new = do.function("tanh", new + reset * h_new)
        h = new + keep * (h - new)
        return h, (h,)


def cell(choices: Choices) -> Cell:
    """The recurrent cell of `choices`."""
    units, kind = choices["rnn.units"], choices["rnn.cell"]
    if kind == "dag":
        nodes = tuple(
            (choices.get(f"dag.node{i}.from", 0), choices[f"dag.node{i}.function"])
            for i in range(1, choices["dag.nodes"])
        )
        highway = choices.get("dag.gates", "highway") == "highway"
        return Dag(units, choices["dag.node0.function"], nodes, highway)
    if kind == "tree":
        n = choices["tree.leaves"]

        def node(name: str) -> tuple[str, str]:
            return choices[f"tree.{name}.combine"], choices[f"tree.{name}.function"]

        return Tree(
            units,
            tuple(node(f"leaf{i}") for i in range(n)),
            tuple(node(f"inner{i}") for i in range(n - 1)),
            node("memory"),
            choices[f"tree.memory.into{n}"],
            choices[f"tree.memory.out{n}"],
        )
    return {"lstm": Lstm, "gru": Gru}[kind](units)


def network(choices: Choices) -> LanguageModel:
    """The language model of `choices`; its vocabulary is `text.vocabulary`."""
    vocabulary, width = choices["text.vocabulary"], choices["embed.width"]
    rank, tied = choices.get("embed.rank", 0), choices["embed.tied"]
    units, table_width = choices["rnn.units"], rank or width
    output = Output(vocabulary, "embedding/words" if tied else "", table_width)
    kind, slots = choices.get("memory.kind", "none"), choices.get("memory.slots", 0)
    if kind == "cache":
        features = table_width if tied else units
        cache = slots, choices["memory.share"], choices["memory.sharpness"]
        output = CachedOutput(*astuple(output), features, *cache)
    ops = [
        ("embedding", Embedding(vocabulary, width, rank), EMBEDDING),
        *((f"cell{i}", cell(choices), RECURRENT) for i in range(choices.get("rnn.layers", 1))),
        ("output", output, OUTPUT),
    ]
    between = []
    if kind in MEMORIES:
        sizes = [choices[f"memory.{what}"] for what in ("heads", "key") if kind == "soft"]
        memory = MEMORIES[kind](units, slots, *sizes)
        between.append(("memory", memory, RECURRENT))
    if choices.get("experts.n", 1) > 1:
        named = {f"experts.{field.name}": field.name for field in fields(Experts)}
        experts = Experts(**{own: choices[name] for name, own in named.items() if name in choices})
        between.append(("experts", experts, RECURRENT))
    ops[-1:-1] = between
    steps = [Step(name, op, (i - 1,), group) for i, (name, op, group) in enumerate(ops)]
    return LanguageModel(
        tuple(steps), vocabulary, TEXT_GROUPS, choices["serve.words"], choices["train.words"]
    )


def build(choices: Choices):
    """The float network of `choices`, one step of it, as a `keras.Model`, freshly initialized."""
    return network(choices).keras()


def compressions(choices: Choices) -> list[Compression]:
    """The compression of every group: a codebook of the embedding, if chosen."""
    index_bits = (choices.get("embed.codebook", 0) or 1).bit_length() - 1
    return [Compression(index_bits=index_bits), UNCOMPRESSED, UNCOMPRESSED]


def layers(choices: Choices) -> Layers:
    """Its rows for the hardware model: sequences of `serve.words` words at the serving batch."""
    batch = choices["serve.batch"]
    return network(choices).layers(precisions(choices), batch, compressions(choices))
