"""Accelerators: parameters of the systolic family as arrays, and the named devices."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DATAFLOWS = ("os", "ws", "is")
MULTIPLIERS = ("fixed8", "fixed16", "bf16", "composable", "bit-serial")
DEPTHWISE_ENGINES = ("array", "vector")
TECHNOLOGIES_NM = (45, 28)

FIELDS = (
    "rows",
    "columns",
    "dataflow",
    "sram_input_bytes",
    "sram_weight_bytes",
    "sram_output_bytes",
    "dram_bandwidth",
    "clock_hz",
    "double_weight_plane",
    "multiplier",
    "vector_lanes",
    "depthwise_on",
    "technology_nm",
)
_RATES = ("dram_bandwidth", "clock_hz")
_CHOICES = {
    "dataflow": DATAFLOWS,
    "multiplier": MULTIPLIERS,
    "depthwise_on": DEPTHWISE_ENGINES,
    "technology_nm": TECHNOLOGIES_NM,
}
_MAX_COUNT = 2**40


class Configs:
    """Accelerators of the systolic family, one per index; scalars are broadcast to the longest.

    Arrays of shape [n_configs]:
    `rows`, `columns` of the array; `dataflow` (os, ws, is: which operand stays in place);
    `sram_input_bytes`, `sram_weight_bytes`, `sram_output_bytes` (the last holds the accumulators);
    `dram_bandwidth` in bytes/s; `clock_hz`; `double_weight_plane` (the next stationary tile is
    loaded while the present one is used); `multiplier` (fixed8, fixed16, bf16, composable,
    bit-serial); `vector_lanes`; `depthwise_on` (array, vector); `technology_nm` (45, 28).

    Raises ValueError that names the parameter, the value and its index.
    """

    def __init__(
        self,
        *,
        rows,
        columns,
        dataflow,
        sram_input_bytes,
        sram_weight_bytes,
        sram_output_bytes,
        dram_bandwidth,
        clock_hz,
        double_weight_plane=False,
        multiplier="fixed8",
        vector_lanes=16,
        depthwise_on="array",
        technology_nm=45,
    ):
        given = {field: value for field, value in locals().items() if field in FIELDS}
        self._columns = {}
        arrays = {field: np.atleast_1d(np.asarray(value)) for field, value in given.items()}
        lengths = {field: array.size for field, array in arrays.items() if array.shape != (1,)}
        n_configs = max(lengths.values(), default=1)
        for field, array in arrays.items():
            if array.ndim != 1 or array.size not in (1, n_configs):
                raise ValueError(
                    f"{field} has shape {list(array.shape)}; give a scalar or one value for each "
                    f"of the {n_configs} configurations"
                )
            self._columns[field] = np.broadcast_to(_checked(field, array), n_configs).copy()

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        if len(self) > 1:
            return f"Configs({len(self)} accelerators)"
        return f"Configs({', '.join(f'{key}={value!r}' for key, value in self.row(0).items())})"

    def __getattr__(self, field: str) -> np.ndarray:
        if field not in FIELDS:
            raise AttributeError(f"Configs has no {field!r}; its arrays are {', '.join(FIELDS)}")
        column = self._columns[field]
        return np.array(_CHOICES[field])[column] if field in _CHOICES else column

    def __getitem__(self, index) -> Configs:
        """A slice, a boolean mask, an index array or one index; always a `Configs`."""
        taken = object.__new__(Configs)
        taken._columns = {
            field: np.atleast_1d(column[index]) for field, column in self._columns.items()
        }
        return taken

    def take(self, indices: Sequence[int] | np.ndarray) -> Configs:
        """The accelerators named, in that order; repeats are allowed."""
        return self[np.asarray(indices, dtype=np.int64)]

    def row(self, index: int) -> dict:
        """The parameters of one accelerator as plain Python values."""
        return {field: getattr(self, field)[index].item() for field in FIELDS}

    def codes(self, field: str) -> np.ndarray:
        """[n_configs] int64: the place of each choice in its list (`DATAFLOWS`, ...)."""
        return self._columns[field]

    @classmethod
    def concat(cls, many: Sequence[Configs]) -> Configs:
        """The accelerators of all of `many`, in order. Raises ValueError when there is none."""
        if not many:
            raise ValueError("concat needs at least one Configs, got an empty sequence")
        joined = object.__new__(cls)
        joined._columns = {
            field: np.concatenate([one._columns[field] for one in many]) for field in FIELDS
        }
        return joined


class Device(NamedTuple):
    """A named accelerator: where its parameters come from, and the parameters of `Configs`."""

    provenance: str
    parameters: dict


DEVICES = {
    "systolic-edge-16": Device(
        "A reference point, not a product: the default size of the Gemmini generator (Genc et al., "
        "DAC 2021: 16 x 16 int8, 256 KiB scratchpad, 64 KiB accumulators) with one LPDDR4 channel. "
        "45 nm, the node of the energy table.",
        dict(
            rows=16,
            columns=16,
            dataflow="ws",
            sram_input_bytes=128 * 1024,
            sram_weight_bytes=128 * 1024,
            sram_output_bytes=64 * 1024,
            dram_bandwidth=8e9,
            clock_hz=500e6,
            double_weight_plane=True,
            multiplier="fixed8",
            vector_lanes=16,
            depthwise_on="array",
            technology_nm=45,
        ),
    ),
    "tpu-v1": Device(
        "Jouppi et al., ISCA 2017: 256 x 256 8-bit array at 700 MHz, 24 MiB unified buffer and "
        "4 MiB accumulators, four 64 KiB tiles of weight FIFO, 34 GB/s of weight memory, 28 nm. "
        "The width of the vector unit is not published; one lane per column is assumed.",
        dict(
            rows=256,
            columns=256,
            dataflow="ws",
            sram_input_bytes=24 * 2**20,
            sram_weight_bytes=4 * 64 * 1024,
            sram_output_bytes=4 * 2**20,
            dram_bandwidth=34e9,
            clock_hz=700e6,
            double_weight_plane=True,
            multiplier="fixed8",
            vector_lanes=256,
            depthwise_on="array",
            technology_nm=28,
        ),
    ),
}


def device(name: str) -> Configs:
    """The accelerator of that name as a `Configs` of length 1; `DEVICES` says where it is from.

    Raises ValueError for an unknown name, with the nearest names and the whole list.
    """
    if name not in DEVICES:
        near = difflib.get_close_matches(str(name), DEVICES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown device {name!r}; {hint}the devices are {', '.join(DEVICES)}")
    return Configs(**DEVICES[name].parameters)


def _checked(field: str, array: np.ndarray) -> np.ndarray:
    """The column kept for a parameter: numbers, or the codes of choices."""
    if field in _CHOICES:
        choices = _CHOICES[field]
        codes = np.full(array.shape, -1, dtype=np.int64)
        for code, choice in enumerate(choices):
            codes[array == choice] = code
        _require(field, array, codes >= 0, "one of " + ", ".join(map(str, choices)))
        return codes
    if field == "double_weight_plane":
        _require(field, array, np.isin(array, (False, True)), "True or False")
        return array.astype(bool)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{field} must be numbers, got {array.tolist()[:5]}")
    with np.errstate(invalid="ignore"):
        if field in _RATES:
            _require(field, array, np.isfinite(array) & (array > 0), "finite and above 0")
            return array.astype(np.float64)
        whole = (array >= 1) & (array <= _MAX_COUNT) & (array == np.floor(array))
    _require(field, array, whole, f"a whole number from 1 to {_MAX_COUNT}")
    return array.astype(np.int64)


def _require(field: str, array: np.ndarray, valid: np.ndarray, wanted: str) -> None:
    if not valid.all():
        index = int(np.argmin(valid))
        raise ValueError(
            f"{field} must be {wanted}, got {array[index].item()!r} at configuration {index}"
        )
