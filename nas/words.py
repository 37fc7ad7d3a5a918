"""Figures and designs in words: what people read on a page or a terminal, and no program does.

Metrics and decisions carry their units in their names, so that those of a table, of another network
or of another accelerator find their words here too.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from search_spaces.precision import GROUPS, precisions
from search_spaces.space import Choices
from search_spaces.training import REFERENCE_BATCH, peak_learning_rate, warmup_share

if TYPE_CHECKING:
    from nas.fidelities import Correlation

SPACE = "\N{NO-BREAK SPACE}"
NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
PREFIXES = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1: "", 1e-3: "m", 1e-6: "µ", 1e-9: "n"}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SYMBOLS = {"s": "s", "j": "J", "bytes": "B"}  # as the names of metrics end, and take a prefix
SHARES = ("accuracy", "utilization")  # of 1, as the names of metrics begin or end
# as the names of metrics and decisions end, and take none
UNITS = {"gbps": "GB/s", "mhz": "MHz", "kib": "KiB", "mm2": "mm²", "ms": "ms", "us": "µs"}
SIDES = (("hw.rows", "hw.columns"), ("hw.pe_x", "hw.pe_y"))  # of an array
PLAIN = {SPACE: " ", NONE: "-", MINUS: "-", TIMES: "x", "±": "+-", "µ": "u", "“": '"', "”": '"'}
DATAFLOWS = {"os": "output-stationary", "ws": "weight-stationary", "is": "input-stationary"}
MULTIPLIERS = {
    "fixed8": "fixed 8-bit",
    "fixed16": "fixed 16-bit",
    "bf16": "bfloat16",
    "composable": "composable",
    "bit-serial": "bit-serial",
}


def known(value: Any) -> bool:
    """Whether a metric was measured: None and NaN were not."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """At least so many significant digits, never an exponent; a dash for what is not known."""
    if not known(value):
        return NONE
    size = abs(float(f"{value:.{digits}g}"))
    decimals = digits - 1 - math.floor(math.log10(size)) if size else 0
    return f"{value:,.{max(decimals, 0)}f}".replace("-", MINUS)


class Unit(NamedTuple):
    """A unit for a column of figures: divide by the scale."""

    name: str
    scale: float


def unit(values: Iterable[float], base: str) -> Unit:
    """The prefix of `base` that suits the median of the values."""
    sizes = [abs(value) for value in values if known(value) and value]
    scale = _scale(statistics.median(sizes) if sizes else 1)
    return Unit(PREFIXES[scale] + base, scale)


def _scale(size: float) -> float:
    return next((scale for scale in PREFIXES if size >= scale), min(PREFIXES))


def exact(value: float, unit: str) -> str:
    """A round figure with the prefix that suits it, as it was written: 200 µs."""
    scale = _scale(value)
    return f"{value / scale:.4g}{SPACE}{PREFIXES[scale]}{unit}"


def quantity(value: float | None, unit: str) -> str:
    """`number` with the prefix that suits it: 13.2 µs."""
    if not known(value):
        return NONE
    scale = _scale(abs(float(f"{value:.3g}")) or 1)
    return f"{number(value / scale)}{SPACE}{PREFIXES[scale]}{unit}".rstrip()


def percent(share: float | None, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f}{SPACE}%" if known(share) else NONE


def change(ratio: float) -> str:
    """A relative change: `+4 %`; ratio is the new value over the old one."""
    points = round(100 * (ratio - 1), 1)
    if not points:
        return "0" + SPACE + "%"
    size = f"{abs(points):.1f}" if abs(points) < 10 else f"{abs(points):,.0f}"
    return f"{'+' if points > 0 else MINUS}{size}{SPACE}%"


def power(n: int) -> str:
    """A large count: 1.3 x 10¹⁷; a small one is written out."""
    if n < 10**7:
        return f"{n:,}"
    mantissa, exponent = f"{n:.1e}".split("e")
    return f"{mantissa}{SPACE}{TIMES}{SPACE}10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{number(seconds, 2)}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60}{SPACE}s"
    return f"{whole // 3600}{SPACE}h {whole % 3600 // 60}{SPACE}min"


def count(n: int, one: str, many: str = "") -> str:
    """`1 design`, `2 designs`."""
    return f"{n:,}{SPACE}{one if n == 1 else many or one + 's'}"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def standard_error(share: float, n: int) -> float:
    """Of a share measured on n independent cases."""
    return math.sqrt(share * (1 - share) / n)


def agreement(found: Correlation, rungs: Sequence[float]) -> str:
    """How two rungs of a run's fidelities rank the same designs."""
    low, high = (rungs[number] for number in found.rungs)
    over = f"over {count(found.n, 'design')} trained at both"
    if not known(found.value):
        return f"rank correlation of {low} with {high}: not known, {over}"
    return (
        f"rank correlation of {low} with {high}: {signed(found.value)} "
        f"[{signed(found.low)}, {signed(found.high)}], {over}"
    )


def signed(value: float) -> str:
    """A correlation: −0.12."""
    return f"{value:.2f}".replace("-", MINUS)


def ascii(text: str) -> str:
    """A text for a terminal that may know no other characters."""
    digits = {raised: plain for plain, raised in SUPERSCRIPTS.items()}
    text = text.replace("mm²", "mm2")
    raised = re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: "^" + found[0].translate(digits), text)
    return printable(raised.translate(str.maketrans(PLAIN)))


def printable(text: str) -> str:
    """A text, perhaps a stranger's, that gives a terminal no commands."""
    return "".join(c if c.isprintable() else "?" for c in text)


def parts_of(metric: str) -> tuple[str, str, str]:
    """What a metric's name says before the word that is its unit, that word, and what comes after:
    `latency_s` ends in its unit, `latency_ms_pixel3` goes on. The s of `images_per_s` is none."""
    parts = metric.removeprefix("-").split("_")
    for i in reversed(range(1, len(parts))):
        if (parts[i] in SYMBOLS or parts[i] in UNITS) and parts[i - 1] != "per":
            return " ".join(parts[:i]), parts[i], " ".join(parts[i + 1 :])
    return " ".join(parts), "", ""


def unit_of(metric: str) -> str:
    """The word in a metric's name that is its unit, or ""."""
    return parts_of(metric)[1]


def label(metric: str) -> str:
    """A metric without its unit: latency; latency (pixel3); images per second."""
    before, _, after = parts_of(metric)
    return re.sub(" per s$", " per second", before) + (f" ({after})" if after else "")


def is_share(metric: str) -> bool:
    return metric.startswith(SHARES) or metric.endswith(SHARES)


def base_unit(metric: str) -> str | None:
    """The unit of a metric's values that takes a prefix; None where it has none."""
    return SYMBOLS.get(unit_of(metric))


def value(metric: str, figure: float | None) -> str:
    """A metric's value with its unit: 93.1 %, 13.2 µs, 4.20 mm²."""
    if is_share(metric):
        return percent(figure)
    if base_unit(metric):
        return quantity(figure, base_unit(metric))
    unit = UNITS.get(unit_of(metric))
    return f"{number(figure)}{SPACE}{unit}" if unit and known(figure) else number(figure)


def heading(metric: str, chosen: Unit | None) -> list[str]:
    """A column's name and the unit of its values, if any."""
    unit = chosen.name if chosen else UNITS.get(unit_of(metric))
    return [label(metric), *([unit] if unit else [])]


def in_unit(metric: str, figure: float | None, chosen: Unit | None) -> str:
    """A metric's value in a column whose heading has the unit."""
    if is_share(metric):
        return percent(figure)
    return number(figure / chosen.scale if chosen and known(figure) else figure)


def round_value(metric: str, figure: float) -> str:
    """A round value of a metric with its unit, as it was written: 200 µs, 0.5 mm², 80 %."""
    if is_share(metric):
        return f"{100 * figure:g}{SPACE}%"
    if base_unit(metric):
        return exact(figure, base_unit(metric))
    unit = UNITS.get(unit_of(metric))
    return f"{figure:,g}{SPACE}{unit}" if unit else f"{figure:,g}"


def metric(name: str, value: float) -> str:
    """A metric and a round value of it: latency 200 µs."""
    return f"{label(name)} {round_value(name, value)}"


# -- designs ---------------------------------------------------------------------------------------


def decision(name: str, value: Any) -> tuple[str, str]:
    """A decision's name without its group, and a value of it with its unit."""
    base = (name.partition(".")[2] or name).replace("_", " ")
    stem, _, suffix = base.rpartition(" ")
    if suffix in UNITS:
        memory = re.sub(r"^sram (\w+)$", r"\1 SRAM", stem)
        return memory, f"{value}{SPACE}{UNITS[suffix]}"
    texts = {True: "yes", False: "no"} if isinstance(value, bool) else {**DATAFLOWS, **MULTIPLIERS}
    return base, str(texts.get(value, value))


def a(noun: str) -> str:
    """`an image`, `a sequence`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def several(n: int, noun: str) -> str:
    """`1 epoch`, `12 epochs`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def scored(metric: str, figure: float | None) -> str:
    """How good a design is: a share alone, and any other metric by its name."""
    text = value(metric, figure)
    return text if is_share(metric) else f"{label(metric)} {text}"


def bits(choices: Choices) -> str:
    """Weight and activation bits of each group: 5/6 3/6 8/8 8/8."""
    return " ".join(f"{p.weights}/{p.activations}" for p in precisions(choices))


def group(name: str) -> str:
    """A bit-width group: `first and last layer`, `stage 1`, `embedding`."""
    if name == GROUPS[-1]:
        return "first and last layer"
    return re.sub(r"(\d+)$", lambda found: f" {int(found[1]) + 1}", name)


def array(choices: Choices) -> str:
    """The array of an accelerator and its kind in a few words: 16x8 ws composable."""
    kinds = [value for _, value in _hardware(choices) if isinstance(value, str)]
    return " ".join([*_sides(choices), *kinds]) or ", ".join(sizes(choices)[:3])


def rates(choices: Choices) -> str:
    """Its clock and bandwidths."""
    names = [name for name in choices if name.endswith(("_mhz", "_gbps"))]
    return ", ".join(decision(name, choices[name])[1] for name in reversed(names))


def sizes(choices: Choices) -> list[str]:
    """What else there is to it, a phrase each: 64 KiB input SRAM, 400 MHz clock."""
    found = []
    for name, value in _hardware(choices):
        words, text = decision(name, value)
        if isinstance(value, bool):
            found += [words] if value else []
        elif not isinstance(value, str):
            found.append(f"{words} {text}" if text == str(value) else f"{text}{SPACE}{words}")
    return found


def accelerator(family: str, choices: Choices, area_mm2: float, technology_nm: int) -> str:
    """An accelerator in a sentence."""
    kinds = [decision(*pair)[1] for pair in _hardware(choices) if isinstance(pair[1], str)]
    of = ", ".join([f"Of the {family} family", *_sides(choices)])
    return (
        f"{of}: {', '.join([*kinds, *sizes(choices)])}; {number(area_mm2)}{SPACE}mm² in "
        f"{technology_nm}{SPACE}nm."
    )


def _sides(choices: Choices) -> list[str]:
    """`16 x 8`, where there is an array."""
    pairs = [(choices[a], choices[b]) for a, b in SIDES if a in choices and b in choices]
    return [f"{a}{SPACE}{TIMES}{SPACE}{b}" for a, b in pairs]


def _hardware(choices: Choices) -> list[tuple[str, Any]]:
    """The decisions of an accelerator but for the sides of its array."""
    sides = {side for pair in SIDES for side in pair}
    return [pair for pair in choices.items() if pair[0].startswith("hw.") and pair[0] not in sides]


def learning_rate(choices: Choices) -> str:
    """The learning-rate rule in a phrase."""
    base, batch = choices["train.learning_rate"], choices["train.batch"]
    peak = f"{peak_learning_rate(choices):.3g}"
    if "train.lr_rule" in choices:
        rule = {
            "linear": "scaled in proportion",
            "sqrt": "scaled with the square root",
            "none": "not scaled",
        }[choices["train.lr_rule"]]
        peak += f" at its peak: {base} at batch {REFERENCE_BATCH}, {rule} to batch {batch}"
    return f"{peak}; warm-up over {percent(warmup_share(choices), 0)} of the steps"
