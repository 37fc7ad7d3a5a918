"""What may stand between a recurrent cell and the output: a memory of its states, experts; and a
memory of words behind it.

A soft memory is attention over the last states (Daniluk et al., 1702.04521, section 2.2): every
entry is compared and read, so that its price grows with the table. A hard memory reads one entry: a
product with fixed random directions hashes a state (Charikar, STOC 2002), and the entry holds the
state that came after the last one with that hash, as the cache of Grave et al. (1711.02604) finds
its neighbours. Nothing of it grows with the table but its storage.

A cache is attention over the last states too, but finds the words that came after them (Grave et
al., 1612.04426, section 3): those that a text uses now are likely to come again. It learns nothing,
and is there in serving alone.

Experts are those of Shazeer et al. (1701.06538): of n small networks a router gives each word to
`active`. Its scores are sums of two shorter lists, as those of product keys (Lample et al.,
1907.05242, section 3.1), so that 2,048 experts cost it 96 products a word. In training its scores
are noisy, of deviation 1 / n (Riquelme et al., 2106.05974, section 2.2), and a loss keeps the load
even: n times the sum of the share of words times the mean probability (Fedus et al., 2101.03961,
equation 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.sequence import Operation, Output

MOST_SLOTS = 4096
HASH_BITS = 12  # of which a table of 2^b entries takes the first b


@dataclass(frozen=True)
class SoftMemory(Operation):
    """Attention over the last `slots` states, in `heads` of `key` words; added to its input.

    An empty slot has a key and a value of zero. Raises ValueError where `heads` do not divide the
    width.
    """

    width: int
    slots: int
    heads: int
    key: int

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(
                f"{self.width} units do not divide into {self.heads} heads; choose memory.heads "
                "that divides rnn.units"
            )

    @property
    def state(self):
        return (self.slots, self.heads * self.key), (self.slots, self.width)

    def run(self, do, x, state):
        keys, values = state
        value = do.quantized("input", x)
        query = do.quantized("query", do.product("query", value, self.heads * self.key))
        key = do.quantized("key", do.product("key", value, self.heads * self.key))
        shares, keys = do.compared(query, key, keys, self.heads, self.slots)
        found, values = do.collected(shares, value, values, self.heads, self.slots)
        y = x + do.product("read", do.quantized("found", found), self.width)
        return y, (keys, values)


@dataclass(frozen=True)
class HardMemory(Operation):
    """The state that came after the last one of the same hash, from a table of `slots` entries, a
    power of two; added to its input."""

    width: int
    slots: int

    @property
    def state(self):
        return (self.slots, self.width), (1,)  # the table, and where the last state belongs

    def run(self, do, x, state):
        value = do.quantized("input", x)
        address = do.product("hash", value, HASH_BITS)
        found, state = do.recalled(address, value, *state, self.slots)
        return x + do.product("read", found, self.width), state


@dataclass(frozen=True)
class CachedOutput(Output):
    """Scores that are logarithms of chances, `share` of them that of the words which came after the
    features, of `width` words, that are most like the present ones, of the last `slots`.

    An entry's weight is the softmax of the cosine times `sharpness`, so that it does not hang on
    how long features are; what falls on empty slots stays with the output.
    """

    width: int = 1
    slots: int = 16
    share: float = 0.1
    sharpness: float = 6

    @property
    def state(self):  # the last features, the keys, and the words that came after: 0 none, 1 first
        return (self.width,), (self.slots, self.width), (self.slots,)

    @property
    def in_training(self):
        return Output(self.vocabulary, self.tied, self.table_width)

    def run(self, do, x, state):
        x = self.features(do, x)
        scores = do.scores("scores", x, self.vocabulary, self.tied or None)
        return do.cached(scores, x, *state, self)


@dataclass(frozen=True)
class Experts(Operation):
    """`active` of `n` networks of one hidden layer for each word, weighed by the softmax of their
    scores and added to its input; balance: the weight of the loss that keeps their load even.

    Raises ValueError for more active experts than there are, and an n that is no power of two.
    """

    n: int
    active: int
    hidden: int
    balance: float = 0.01

    def __post_init__(self):
        if not 1 <= self.active <= self.n:
            raise ValueError(
                f"{self.active} active experts of {self.n}; choose experts.active of at most "
                "experts.n, and at least 1"
            )
        if self.n & (self.n - 1):
            raise ValueError(f"the number of experts is a power of two, got {self.n}")

    @property
    def sides(self) -> tuple[int, int]:
        """The lengths of the router's two lists."""
        b = self.n.bit_length() - 1
        return 1 << b // 2, 1 << b - b // 2

    def run(self, do, x, state):
        rows, columns = self.sides
        q = do.quantized("input", x)
        scores = do.product("router", q, rows + columns)
        scores = do.outer_sum(*do.split(scores, (rows, columns)))
        return x + do.experts(q, scores, self), state


# The options of a search: name of `memory.kind` -> its class
MEMORIES = {"soft": SoftMemory, "hard": HardMemory}
