"""Accelerators as arrays: the table that every family's configurations share, and the systolic one.

A family's `Configs` says what its parameters are; `ConfigTable` checks, broadcasts and slices them.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

DATAFLOWS = ("os", "ws", "is")
MULTIPLIERS = ("fixed8", "fixed16", "bf16", "composable", "bit-serial")
DEPTHWISE_ENGINES = ("array", "vector")
TECHNOLOGIES_NM = (65, 45, 28, 16, 14, 8, 7)

_REQUIRED = object()
_MAX_COUNT = 2**40


class Field(NamedTuple):
    """A parameter of a family: how its values are checked, and what it is unless given.

    `kind`: "count" (a whole number from 1), "amount" (a whole number from 0), "rate" (finite and
    above 0), "cost" (finite, from 0), "share" (above 0, to 1), "flag" or "choice".
    """

    kind: str
    default: object = _REQUIRED
    choices: tuple = ()


# kind -> (whether a value is allowed, in words, the dtype kept)
_NUMBERS = {
    "count": (
        lambda x: (x >= 1) & (x <= _MAX_COUNT) & (x == np.floor(x)),
        f"a whole number from 1 to {_MAX_COUNT}",
        np.int64,
    ),
    "amount": (
        lambda x: (x >= 0) & (x <= _MAX_COUNT) & (x == np.floor(x)),
        f"a whole number from 0 to {_MAX_COUNT}",
        np.int64,
    ),
    "rate": (lambda x: np.isfinite(x) & (x > 0), "finite and above 0", np.float64),
    "cost": (lambda x: np.isfinite(x) & (x >= 0), "finite and not negative", np.float64),
    "share": (lambda x: (x > 0) & (x <= 1), "above 0 and at most 1", np.float64),
}
TECHNOLOGY = Field("choice", 45, TECHNOLOGIES_NM)


class ConfigTable:
    """Accelerators of one family, one per index; scalars are broadcast to the longest.

    Every parameter is an attribute of shape [n_configs]. Raises ValueError that names the
    parameter, the value and its index, and for an unknown or a missing parameter.
    """

    FAMILY: ClassVar[str]
    FIELDS: ClassVar[dict[str, Field]]

    def __init__(self, **parameters):
        for name in parameters:
            if name not in self.FIELDS:
                raise ValueError(
                    f"unknown parameter {name!r}; {nearest(name, self.FIELDS)}a {self.FAMILY} "
                    f"accelerator has {', '.join(self.FIELDS)}"
                )
        given = {name: field.default for name, field in self.FIELDS.items()} | parameters
        missing = [name for name, value in given.items() if value is _REQUIRED]
        if missing:
            raise ValueError(f"a {self.FAMILY} accelerator needs {', '.join(missing)}")
        arrays = {name: np.atleast_1d(np.asarray(value)) for name, value in given.items()}
        n_configs = max((a.size for a in arrays.values() if a.shape != (1,)), default=1)
        self._columns = {}
        for name, array in arrays.items():
            if array.ndim != 1 or array.size not in (1, n_configs):
                raise ValueError(
                    f"{name} has shape {list(array.shape)}; give a scalar or one value for each "
                    f"of the {n_configs} configurations"
                )
            column = _checked(name, self.FIELDS[name], array)
            self._columns[name] = np.repeat(column, n_configs) if array.size == 1 else column

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __repr__(self) -> str:
        if len(self) > 1:
            return f"Configs({len(self)} {self.FAMILY} accelerators)"
        return f"Configs({', '.join(f'{key}={value!r}' for key, value in self.row(0).items())})"

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in self.FIELDS:
            raise AttributeError(
                f"{self.FAMILY} Configs has no {name!r}; its arrays are {', '.join(self.FIELDS)}"
            )
        column, field = self._columns[name], self.FIELDS[name]
        return _values(field.choices)[column] if field.kind == "choice" else column

    def __getitem__(self, index) -> ConfigTable:
        """A slice, a boolean mask, an index array or one index; always of the same family."""
        taken = object.__new__(type(self))
        taken._columns = {
            name: np.atleast_1d(column[index]) for name, column in self._columns.items()
        }
        return taken

    def take(self, indices: Sequence[int] | np.ndarray) -> ConfigTable:
        """The accelerators named, in that order; repeats are allowed."""
        return self[np.asarray(indices, dtype=np.int64)]

    def row(self, index: int) -> dict:
        """The parameters of one accelerator as plain Python values."""
        return {name: getattr(self, name)[index].item() for name in self.FIELDS}

    def codes(self, name: str) -> np.ndarray:
        """[n_configs] int64: the place of each choice in its list (`DATAFLOWS`, ...)."""
        return self._columns[name]

    @classmethod
    def concat(cls, many: Sequence[ConfigTable]) -> ConfigTable:
        """The accelerators of all of `many`, in order. Raises ValueError when there is none, and
        for one of another family."""
        if not many:
            raise ValueError("concat needs at least one Configs, got an empty sequence")
        for one in many:
            if type(one) is not cls:
                raise ValueError(f"cannot join {one!r} with {cls.FAMILY} accelerators")
        joined = object.__new__(cls)
        joined._columns = {
            name: np.concatenate([one._columns[name] for one in many]) for name in cls.FIELDS
        }
        return joined


class Configs(ConfigTable):
    """Accelerators of the systolic family.

    `rows`, `columns` of the array; `dataflow` (os, ws, is: which operand stays in place);
    `sram_input_bytes`, `sram_weight_bytes`, `sram_output_bytes` (the last holds the accumulators);
    `dram_bandwidth` in bytes/s; `clock_hz`; `double_weight_plane` (the next stationary tile is
    loaded while the present one is used); `multiplier` (fixed8, fixed16, bf16, composable,
    bit-serial); `vector_lanes`; `depthwise_on` (array, vector); `skips_zeros` (multiplications by
    zero weights take no time); `technology_nm`; `activations_on_chip` (activations that fit the
    input SRAM never cross DRAM, as in TPU v1, where they come from and go to the host).
    """

    FAMILY = "systolic"
    FIELDS: ClassVar[dict[str, Field]] = {
        "rows": Field("count"),
        "columns": Field("count"),
        "dataflow": Field("choice", choices=DATAFLOWS),
        "sram_input_bytes": Field("count"),
        "sram_weight_bytes": Field("count"),
        "sram_output_bytes": Field("count"),
        "dram_bandwidth": Field("rate"),
        "clock_hz": Field("rate"),
        "double_weight_plane": Field("flag", False),
        "multiplier": Field("choice", "fixed8", MULTIPLIERS),
        "vector_lanes": Field("count", 16),
        "depthwise_on": Field("choice", "array", DEPTHWISE_ENGINES),
        "skips_zeros": Field("flag", False),
        "technology_nm": TECHNOLOGY,
        "activations_on_chip": Field("flag", False),
    }


def nearest(name: str, names) -> str:
    """ "did you mean ...? " with the closest of `names`, or nothing."""
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


@functools.cache
def _values(choices: tuple) -> np.ndarray:
    return np.array(choices)


def _checked(name: str, field: Field, array: np.ndarray) -> np.ndarray:
    """The column kept for a parameter: numbers, or the codes of choices."""
    if field.kind == "choice":
        codes = np.full(array.shape, -1, dtype=np.int64)
        for code, choice in enumerate(field.choices):
            codes[array == choice] = code
        _require(name, array, codes >= 0, "one of " + ", ".join(map(str, field.choices)))
        return codes
    if field.kind == "flag":
        if array.dtype != bool:
            _require(name, array, np.isin(array, (False, True)), "True or False")
        return array.astype(bool)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be numbers, got {array.tolist()[:5]}")
    allowed, wanted, dtype = _NUMBERS[field.kind]
    with np.errstate(invalid="ignore"):
        _require(name, array, allowed(array), wanted)
    return array.astype(dtype)


def _require(name: str, array: np.ndarray, valid: np.ndarray, wanted: str) -> None:
    if not valid.all():
        index = int(np.argmin(valid))
        raise ValueError(
            f"{name} must be {wanted}, got {array[index].item()!r} at configuration {index}"
        )
