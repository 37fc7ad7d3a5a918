"""The spatial family: row-stationary arrays of processing elements, as Eyeriss.

A set of R x e elements computes e rows of one output channel from R rows of a filter: each element
keeps a filter row and slides it along an input row (Chen et al., ISSCC 2016; JSSC 2017, sections
III and IV, whose letters are kept here: p filters and q channels in an element's scratchpads,
t sets of other filters and r sets of other channels beside each other). One pass takes

    n·F·p·q·S cycles of multiplications, for n images
    + p·t·q·r·R·S weights over a bus of four words
    + q·r·S words of each input row over a bus of one word, before the first window is complete
    + p·t·e sums over a bus of four words, after the last,

(the inputs of later windows and images come meanwhile), and ceil(M/pt)·ceil(C/qr)·ceil(E/e)·
ceil(B/n) passes a group. Other words: B images, M filters, C channels of a group, E x F outputs, an
R x S filter.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from hwmodel import area, energy
from hwmodel.config import TECHNOLOGY, ConfigTable, Field
from hwmodel.figures import Areas
from hwmodel.rowwise import Family, RowCosts
from hwmodel.workload import VECTOR, Layers

WORD_BITS = 16
WORD_BYTES = WORD_BITS / 8
WIDE_BUS_WORDS = 4  # weights and sums, 64 bits; inputs come one word a cycle (JSSC, section V)
# Energies of an access relative to a 16-bit multiply-accumulate at 65 nm (Chen et al., ISCA 2016,
# table IV): a register file of 0.5 KB, the next element, a buffer above 100 KB.
REGISTER_MACS, NEIGHBOUR_MACS, BUFFER_MACS = 1.0, 2.0, 6.0
# Clock: 33 % of Eyeriss' 332 mW in its first layer, over 168 elements at 200 MHz (JSSC; recalled).
# The multiply-accumulate is the one constant set by a measurement: AlexNet's mean of 278 mW.
CLOCK_PJ, MAC_PJ, MEASURED_NM = 3.2, 1.67, 65
BALANCES = 8  # divisions of the filters among passes that are tried, from the fewest passes on
# Registers touched a multiply-accumulate: an input read always; a weight read, a sum read and
# written only where the input is not zero and its work not gated.
READS_ALWAYS, READS_WORKING = 1, 3
REASONS = (
    "feasible",
    "the elements multiply words of at most 16 bits",
    "a row of the filter is longer than the input scratchpad",
    "a row of the filter is longer than the filter scratchpad",
)


class Configs(ConfigTable):
    """Accelerators of the spatial family.

    `rows` x `columns` elements, each with `input_words`, `filter_words` and `sum_words` of
    scratchpad, 16 bits a word; `buffer_bytes` shared by all; `dram_bandwidth` in bytes/s;
    `clock_hz`; `activation_density`, the share of inputs that is not zero (zeros are gated: they
    save energy, not time); `technology_nm`.
    """

    FAMILY = "spatial"
    FIELDS: ClassVar[dict[str, Field]] = {
        "rows": Field("count"),
        "columns": Field("count"),
        "input_words": Field("count", 12),
        "filter_words": Field("count", 224),
        "sum_words": Field("count", 24),
        "buffer_bytes": Field("count"),
        "dram_bandwidth": Field("rate"),
        "clock_hz": Field("rate"),
        "activation_density": Field("share", 1.0),
        "technology_nm": TECHNOLOGY,
    }


class Work(NamedTuple):
    """Columns of rows, float64 [n_rows]; letters as in the module's first lines."""

    b: np.ndarray
    m: np.ndarray
    c: np.ndarray
    e: np.ndarray
    f: np.ndarray
    r: np.ndarray
    s: np.ndarray
    groups: np.ndarray
    steps: np.ndarray
    input_rows: np.ndarray  # input rows of one output row's stride
    vector_ops: np.ndarray
    on_array: np.ndarray
    macs: np.ndarray
    input_words: np.ndarray  # of all products
    output_words: np.ndarray
    weight_words: np.ndarray
    widest_bits: np.ndarray
    repeat: np.ndarray


class Machines(NamedTuple):
    """Columns of accelerators, float64 [n_configs]."""

    rows: np.ndarray
    columns: np.ndarray
    input_words: np.ndarray
    filter_words: np.ndarray
    sum_words: np.ndarray
    buffer_words: np.ndarray
    dram_words_per_cycle: np.ndarray
    clock_hz: np.ndarray
    activation_density: np.ndarray
    mac_j: np.ndarray
    leakage_w: np.ndarray
    fixed_s: np.ndarray


class Mapping(NamedTuple):
    """How a row lies on the array."""

    e: np.ndarray  # output rows of a strip
    p: np.ndarray
    q: np.ndarray
    r: np.ndarray
    t: np.ndarray
    n: np.ndarray
    folds: np.ndarray  # pieces of a filter with more rows than the array
    passes: np.ndarray  # of one group
    dram_words: np.ndarray


def work_of(layers: Layers) -> Work:
    """Columns of `layers`. Products without a window are 1 x 1 filters on a 1 x 1 image."""
    on_array = layers.kind != VECTOR
    taps = layers.kernel_height * layers.kernel_width
    # Attention and experts bring products for a batch, not a larger M.
    once = layers.m // layers.steps  # what a step brings
    images = np.where(once % layers.batch == 0, layers.batch, 1)
    outputs = np.maximum(once // images, 1)
    rows = np.where(on_array, np.maximum(layers.out_height, 1), 1)
    # Rows of input that a further output row needs, at least one: the stride.
    touched = np.sqrt(layers.input_words / np.maximum(images * layers.k / taps, 1))
    stride = np.maximum(1.0, np.round((touched - layers.kernel_height) / np.maximum(rows - 1, 1)))
    stride = np.where(rows > 1, stride, 1.0)
    width = np.maximum(outputs // rows, 1)
    # Inputs are kept with their padding, as the paper's table II counts them.
    padded = ((rows - 1) * stride + layers.kernel_height) * (
        (width - 1) * stride + layers.kernel_width
    )
    words = np.where(
        on_array,
        np.maximum(images * (layers.k // taps) * padded, layers.input_words),
        layers.input_words,
    )
    columns = Work(
        b=np.maximum(images, 1),
        m=np.maximum(layers.n, 1),
        c=np.maximum(layers.k // taps, 1),
        e=rows,
        f=width,
        r=layers.kernel_height,
        s=layers.kernel_width,
        groups=layers.groups,
        steps=layers.steps,
        input_rows=stride,
        vector_ops=layers.vector_ops * ~on_array,
        on_array=on_array,
        macs=layers.row_macs / layers.repeat,
        input_words=words * layers.groups * layers.steps,
        output_words=layers.output_words,
        weight_words=layers.k * layers.n * layers.groups + layers.bias_words,
        widest_bits=np.maximum(layers.weight_bits * on_array, layers.activation_bits),
        repeat=layers.repeat,
    )
    return Work(*(np.asarray(column, dtype=np.float64) for column in columns))


def machines(configs: Configs) -> Machines:
    """Columns of `configs`."""
    scale = energy.energy_scale(configs.technology_nm) / energy.energy_scale(MEASURED_NM)
    clock_w = configs.rows * configs.columns * configs.clock_hz * CLOCK_PJ * 1e-12 * scale
    leakage_w = areas(configs).array_area_mm2 * energy.LOGIC_LEAKAGE_W_PER_MM2
    buffer_scale = area.area_scale(configs.technology_nm)
    leakage_w += configs.buffer_bytes * energy.SRAM_LEAKAGE_W_PER_BYTE * buffer_scale
    return Machines(
        rows=configs.rows.astype(np.float64),
        columns=configs.columns.astype(np.float64),
        input_words=configs.input_words.astype(np.float64),
        filter_words=configs.filter_words.astype(np.float64),
        sum_words=configs.sum_words.astype(np.float64),
        buffer_words=configs.buffer_bytes / WORD_BYTES,
        dram_words_per_cycle=configs.dram_bandwidth / configs.clock_hz / WORD_BYTES,
        clock_hz=configs.clock_hz,
        activation_density=configs.activation_density,
        mac_j=MAC_PJ * 1e-12 * scale,
        leakage_w=clock_w + leakage_w,
        fixed_s=np.zeros(len(configs)),
    )


def areas(configs: Configs) -> Areas:
    """Elements with their scratchpads, and the shared buffer; registers for the two small
    scratchpads, SRAM for the filters'."""
    registers = (configs.input_words + configs.sum_words) * WORD_BITS * area.REGISTER_UM2_PER_BIT
    filters = configs.filter_words * WORD_BYTES * area.SRAM_UM2_PER_BYTE
    element = area.ELEMENT_UM2["fixed16"] + registers + filters
    scale = area.area_scale(configs.technology_nm) * 1e-6
    return Areas(
        array_area_mm2=configs.rows * configs.columns * element * scale,
        vector_area_mm2=np.zeros(len(configs)),
        sram_area_mm2=configs.buffer_bytes * area.SRAM_UM2_PER_BYTE * scale,
    )


def balanced(total, largest):
    """The least size of equal parts, as many as parts of at most `largest` would be."""
    return np.ceil(total / np.ceil(total / np.maximum(largest, 1)))


def mapping(work: Work, machine: Machines) -> Mapping:
    """The mapping of each row on each array.

    Filter rows lie along array rows, so floor(rows/R) bands of elements stand on each other. An
    output higher than all bands is cut into strips, of half or a quarter of the width (and as many
    more filters at once) where the sums of all filters would not fit the buffer otherwise. Elements
    left over take further sets, of other filters and other channels in like numbers. q fills the
    input scratchpad; p is the number of filters that leaves the fewest multiplications idle; n the
    number of images, a power of two, that moves the fewest words to and from DRAM.
    """
    height = np.minimum(work.r, machine.rows)
    bands = np.floor(machine.rows / height)
    span = bands * machine.columns
    sums = work.m * work.f
    share = np.select(
        [sums * np.floor(span / k) <= machine.buffer_words for k in (1, 2, 4)],
        [1.0, 2.0, 4.0],
        1.0,
    )
    cut = np.maximum(np.floor(span / share), 1)
    strip = np.where(work.e > span, cut, work.e)
    beside = np.floor(machine.columns / strip) * bands  # where a set is narrower than the array
    stacked = np.floor(bands / np.ceil(strip / machine.columns))
    sets = np.where(work.e > span, np.floor(span / cut), np.maximum(beside, stacked))
    sets = np.maximum(sets, 1)
    q = balanced(work.c, np.floor(machine.input_words / work.s))
    p_limit = np.minimum(machine.sum_words, np.floor(machine.filter_words / (q * work.s)))
    p_limit = np.clip(p_limit, 1, work.m)
    t = np.minimum(np.ceil(np.sqrt(sets)), np.ceil(work.m / p_limit))
    r = np.minimum(np.floor(sets / t), np.ceil(work.c / q))
    t = np.minimum(np.floor(sets / r), np.ceil(work.m / p_limit))
    shape = np.broadcast_shapes(t.shape, p_limit.shape)
    p, issued = np.ones(shape), np.full(shape, np.inf)
    for more in range(BALANCES):
        times = np.ceil(work.m / (p_limit * t)) + more
        tried = np.ceil(work.m / (t * times))
        better = tried * times < issued
        p, issued = np.where(better, tried, p), np.where(better, tried * times, issued)
    folds = np.ceil(work.r / machine.rows)
    n, moved = np.ones(shape), np.full(shape, np.inf)
    for power in range(int(np.log2(max(work.b.max(), 1))) + 1):
        tried = 2.0**power
        words = dram_words(work, machine, strip, p * t, tried)
        better = (tried <= work.b) & (words < moved)
        n, moved = np.where(better, tried, n), np.where(better, words, moved)
    passes = (
        np.ceil(work.m / (p * t))
        * np.ceil(work.c / (q * r))
        * np.ceil(work.e / strip)
        * np.ceil(work.b / n)
    )
    return Mapping(strip, p, q, r, t, n, folds, passes * folds, moved)


def active_elements(work: Work, machine: Machines) -> np.ndarray:
    """Elements that a full pass keeps busy."""
    laid = mapping(work, machine)
    return np.minimum(work.r, machine.rows) * laid.e * laid.r * laid.t


def pass_cycles(work: Work, laid: Mapping) -> np.ndarray:
    """Cycles of one pass, nothing in the way but the buses between buffer and array."""
    height = np.ceil(work.r / laid.folds)
    filters, channels = laid.p * laid.t, laid.q * laid.r
    weights = filters * channels * height * work.s
    first = ((laid.e - 1) * work.input_rows + height) * channels * work.s
    last = filters * laid.e
    return (
        laid.n * work.f * laid.p * laid.q * work.s
        + np.ceil(weights / WIDE_BUS_WORDS)
        + first
        + np.ceil(last / WIDE_BUS_WORDS)
    )


def dram_words(work: Work, machine: Machines, strip, filters, images) -> np.ndarray:
    """Words to and from DRAM of one repeat, for passes of `filters` and `images`.

    The buffer keeps the sums of as many filters as it holds, for all images of a pass: inputs come
    once for each such group, the overlap of strips again; weights once for each strip and pass of
    images; outputs once. Words are 16 bits wide: neither zeros nor codebooks make them fewer or
    narrower here. Vector work moves its words once.
    """
    rows = (strip - 1) * work.input_rows + work.r
    overlap = np.where(work.e > strip, rows / (strip * work.input_rows), 1.0)
    held = np.floor(machine.buffer_words / (strip * work.f * images * filters))
    refetches = np.ceil(work.m / (np.maximum(held, 1) * filters))
    # A buffer too small for one pass hands each sum that does not fit to DRAM and takes it back.
    spilled = np.where(held < 1, 2.0 * work.output_words * np.ceil(work.c), 0.0)
    rereads = np.ceil(work.e / strip) * np.ceil(work.b / images)
    return (
        work.input_words * np.where(work.on_array, overlap * refetches, 1.0)
        + work.weight_words * np.where(work.on_array, rereads, 1.0)
        + work.output_words
        + spilled * work.on_array
    )


def row_costs(work: Work, machine: Machines) -> RowCosts:
    """Costs of rows. Vector work runs on the elements, one operation a cycle each."""
    laid = mapping(work, machine)
    elements = machine.rows * machine.columns
    runs = laid.passes * work.groups * work.steps * work.on_array
    vector = np.ceil(work.vector_ops / elements)
    compute = runs * pass_cycles(work, laid)
    dram = np.ceil(laid.dram_words / machine.dram_words_per_cycle)
    height = np.ceil(work.r / laid.folds)
    strip_rows = (laid.e - 1) * work.input_rows + height
    sums = laid.n * laid.p * laid.t * laid.e * work.f
    inputs = laid.n * laid.q * laid.r * strip_rows * work.f * work.input_rows
    buffer_words = runs * (2 * sums + inputs) + (work.input_words + work.output_words) * (
        1 - work.on_array
    )
    neighbours = runs * (sums * laid.r * height + inputs)
    macs = work.macs + work.vector_ops
    gated = np.where(work.on_array, machine.activation_density, 1.0)
    registers = macs * (READS_ALWAYS + READS_WORKING * gated) * REGISTER_MACS
    unit = machine.mac_j * work.repeat
    per_cycle = 1 / machine.clock_hz * work.repeat
    code = np.where(work.s * work.on_array > machine.filter_words, 3, 0)
    code = np.where(work.s * work.on_array > machine.input_words, 2, code)
    return RowCosts(
        seconds=np.maximum(np.maximum(compute, vector), dram) * per_cycle,
        parts={
            "compute": compute * per_cycle,
            "vector": vector * per_cycle,
            "dram": dram * per_cycle,
        },
        arithmetic_j=macs * gated * unit,
        register_j=(registers + neighbours * NEIGHBOUR_MACS) * unit,
        sram_j=buffer_words * BUFFER_MACS * unit,
        dram_j=laid.dram_words * WORD_BYTES * energy.DRAM_PJ_PER_BYTE * 1e-12 * work.repeat,
        dram_bytes=laid.dram_words * WORD_BYTES * work.repeat,
        sram_bytes=buffer_words * WORD_BYTES * work.repeat,
        peak_s=work.macs / elements * per_cycle,
        code=np.where(work.widest_bits > WORD_BITS, 1, code),
    )


FAMILY = Family(REASONS, machines, areas, work_of, row_costs)
