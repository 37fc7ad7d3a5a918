"""The named devices: where their parameters come from, and one technology node each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from hwmodel import config, edge, energy, fpga, measured, roofline, spatial
from hwmodel.config import Configs, ConfigTable, nearest


class Device(NamedTuple):
    """A named accelerator: where its parameters come from, its family's `Configs` and their
    values."""

    provenance: str
    configs: type[ConfigTable]
    parameters: dict


# family -> the class of its accelerators
CONFIGS = {
    family.Configs.FAMILY: family.Configs
    for family in (config, spatial, edge, fpga, roofline, measured)
}

HBM2_PJ_PER_BYTE = 350 / 8  # 250 to 450 pJ for 64 bits (Jouppi et al., ISCA 2021, table 2)
GDDR6X_PJ_PER_BYTE = 7.25 * 8  # Micron's 7.25 pJ a bit


def _tpu(columns: int, dram_bandwidth: float, clock_hz: float) -> dict:
    """What the second and third TPU share."""
    return dict(
        rows=128,
        columns=columns,
        dataflow="ws",
        sram_input_bytes=16 * 2**20,
        sram_weight_bytes=8 * 2**20,
        sram_output_bytes=8 * 2**20,
        dram_bandwidth=dram_bandwidth,
        clock_hz=clock_hz,
        double_weight_plane=True,
        multiplier="bf16",
        vector_lanes=2048,
        depthwise_on="vector",
        skips_zeros=False,
        technology_nm=16,
        activations_on_chip=False,
    )


DEVICES = {
    "systolic-edge-16": Device(
        "A reference point, not a product: the default size of the Gemmini generator (Genc et al., "
        "DAC 2021: 16 x 16 int8, 256 KiB scratchpad, 64 KiB accumulators) with one LPDDR4 channel. "
        "45 nm, the node of the energy table.",
        Configs,
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
            skips_zeros=False,
            technology_nm=45,
            activations_on_chip=False,
        ),
    ),
    "tpu-v1": Device(
        "Jouppi et al., ISCA 2017: 256 x 256 8-bit array at 700 MHz, 24 MiB unified buffer and "
        "4 MiB accumulators, four 64 KiB tiles of weight FIFO, 34 GB/s of weight memory, 28 nm. "
        "The width of the vector unit is not published; one lane per column is assumed.",
        Configs,
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
            skips_zeros=False,
            technology_nm=28,
            activations_on_chip=True,
        ),
    ),
    "tpu-v2": Device(
        "Jouppi et al., CACM 2020; Norrie et al., IEEE Micro 2021: a chip of two 128 x 128 bf16 "
        "cores at 700 MHz, 45 TFLOPS, 16 MiB of vector memory a core, 1,024 vector lanes a core, "
        "700 GB/s, 16 nm. The cores are priced as one array of twice the columns; the split of the "
        "vector memory among operands is assumed.",
        Configs,
        _tpu(columns=256, dram_bandwidth=700e9, clock_hz=700e6),
    ),
    "tpu-v3": Device(
        "Jouppi et al., CACM 2020; Norrie et al., IEEE Micro 2021: a chip of two cores of two "
        "128 x 128 bf16 arrays at 940 MHz, 123 TFLOPS, 16 MiB of vector memory a core, 900 GB/s, "
        "16 nm. Priced as one array of four times the columns, the vector memory split as in v2.",
        Configs,
        _tpu(columns=512, dram_bandwidth=900e9, clock_hz=940e6),
    ),
    "eyeriss": Device(
        "Chen et al., ISSCC 2016 and JSSC 2017: 12 x 14 elements at 200 MHz, scratchpads of 12, "
        "224 and 24 words, 100 of its 108 KB of buffer for inputs and sums, 16 bits, 65 nm. Its "
        "DRAM link is 64 bits at 60 MHz.",
        spatial.Configs,
        dict(
            rows=12,
            columns=14,
            input_words=12,
            filter_words=224,
            sum_words=24,
            buffer_bytes=100 * 1024,
            dram_bandwidth=480e6,
            clock_hz=200e6,
            activation_density=1.0,
            technology_nm=65,
        ),
    ),
    "edge-nahas": Device(
        "Zhou et al., arXiv 2102.08619: the baseline of NAHAS, 4 x 4 elements of 4 lanes of 64 "
        "units, 26 TOPS at 0.8 GHz, 2 MB of local memory, 32 KB register files, 20 GB/s (recalled)."
        " The node is not published; 16 nm is assumed.",
        edge.Configs,
        dict(
            pe_x=4,
            pe_y=4,
            simd_units=64,
            lanes=4,
            local_memory_bytes=2 * 2**20,
            register_file_bytes=32 * 1024,
            io_bandwidth=20e9,
            clock_hz=0.8e9,
            technology_nm=16,
        ),
    ),
    "bitfusion": Device(
        "Sharma et al., ISCA 2018: 32 x 16 fusion units at 500 MHz, 112 KB of SRAM, 128 bits a "
        "cycle from DRAM, 45 nm (recalled; the split of the SRAM and the 16 vector lanes are "
        "assumed).",
        Configs,
        dict(
            rows=32,
            columns=16,
            dataflow="ws",
            sram_input_bytes=32 * 1024,
            sram_weight_bytes=64 * 1024,
            sram_output_bytes=16 * 1024,
            dram_bandwidth=8e9,
            clock_hz=500e6,
            double_weight_plane=True,
            multiplier="composable",
            vector_lanes=16,
            depthwise_on="array",
            skips_zeros=False,
            technology_nm=45,
            activations_on_chip=False,
        ),
    ),
    "zcu102": Device(
        "Xilinx PG338 and DS891: one DPU B4096 (8 pixels x 16 x 16 channels, 1.2 TOPS at 300 MHz, "
        "its slices at twice the clock) on a ZU9EG with 2,520 DSP slices and 912 memory blocks; "
        "DDR4 of 19.2 GB/s, 16 nm. The depth of the buffers makes the core's published 255 blocks; "
        "static power is assumed.",
        fpga.Configs,
        dict(
            filter_parallelism=16,
            channel_parallelism=16,
            pixel_parallelism=8,
            input_buffer_words=2048,
            weight_buffer_words=2048,
            output_buffer_words=2048,
            memory_bits=512,
            pooling_engine=True,
            pipelined=False,
            dsp_slices=2520,
            memory_blocks=912,
            dsp_clock_ratio=2,
            clock_hz=300e6,
            static_w=3.0,
            technology_nm=16,
        ),
    ),
    "vck190": Device(
        "Xilinx PG389 and DS957: a DPU of 192 of the VC1902's 400 AI engines (128 8-bit "
        "multipliers each at 1.33 GHz, 65 TOPS) with control at 333 MHz; an engine counts as 64 "
        "slices, an UltraRAM as 8 memory blocks, 7 nm. Tile, buffers, memory width and static "
        "power are assumed.",
        fpga.Configs,
        dict(
            filter_parallelism=64,
            channel_parallelism=64,
            pixel_parallelism=24,
            input_buffer_words=2048,
            weight_buffer_words=2048,
            output_buffer_words=2048,
            memory_bits=512,
            pooling_engine=True,
            pipelined=False,
            dsp_slices=400 * 64,
            memory_blocks=967 + 8 * 463,
            dsp_clock_ratio=4,
            clock_hz=333e6,
            static_w=10.0,
            technology_nm=7,
        ),
    ),
    "a100": Device(
        "NVIDIA A100 40 GB data sheet: 624 TOPS int8, 312 TFLOPS bf16, 19.5 TFLOPS fp32, "
        "1,555 GB/s, 40 MB of cache, 108 x 2,048 threads, 826 mm², 7 nm. Depthwise rows run "
        "without tensor cores; the launch and the static power are assumed.",
        roofline.Configs,
        dict(
            macs_per_s_8=312e12,
            macs_per_s_16=156e12,
            macs_per_s_32=9.75e12,
            vector_ops_per_s=9.75e12,
            depthwise_efficiency=0.0625,
            dram_bandwidth=1555e9,
            memory_bytes=40 * 10**9,
            cache_bytes=40 * 2**20,
            launch_s=4e-6,
            occupancy_knee=108 * 2048,
            clock_hz=1.41e9,
            dram_pj_per_byte=HBM2_PJ_PER_BYTE,
            static_w=50.0,
            die_area_mm2=826.0,
            technology_nm=7,
        ),
    ),
    "rtx3090": Device(
        "NVIDIA GA102 white paper: 284 TOPS int8, 142 TFLOPS fp16, 35.6 TFLOPS fp32, 936 GB/s, "
        "6 MB of cache, 82 x 1,536 threads, 628 mm², Samsung 8 nm. Depthwise rows run without "
        "tensor cores; the launch and the static power are assumed.",
        roofline.Configs,
        dict(
            macs_per_s_8=142e12,
            macs_per_s_16=71e12,
            macs_per_s_32=17.8e12,
            vector_ops_per_s=17.8e12,
            depthwise_efficiency=0.25,
            dram_bandwidth=936e9,
            memory_bytes=24 * 10**9,
            cache_bytes=6 * 2**20,
            launch_s=4e-6,
            occupancy_knee=82 * 1536,
            clock_hz=1.695e9,
            dram_pj_per_byte=GDDR6X_PJ_PER_BYTE,
            static_w=40.0,
            die_area_mm2=628.0,
            technology_nm=8,
        ),
    ),
    "xeon": Device(
        "Intel Xeon Gold 6240 (Cascade Lake): 18 cores at 2.6 GHz, two 512-bit units a core with "
        "VNNI, six channels of DDR4-2933 (140.8 GB/s), 24.75 MB of cache, 14 nm. Words of 16 bits "
        "run as 32; memory, launch, knee and static power are assumed, its die's area unknown (0).",
        roofline.Configs,
        dict(
            macs_per_s_8=18 * 128 * 2.6e9,
            macs_per_s_16=18 * 32 * 2.6e9,
            macs_per_s_32=18 * 32 * 2.6e9,
            vector_ops_per_s=18 * 32 * 2.6e9,
            depthwise_efficiency=0.25,
            dram_bandwidth=140.8e9,
            memory_bytes=192 * 10**9,
            cache_bytes=24_750_000,
            launch_s=5e-6,
            occupancy_knee=18 * 32 * 4,
            clock_hz=2.6e9,
            dram_pj_per_byte=energy.DRAM_PJ_PER_BYTE,
            static_w=40.0,
            die_area_mm2=0.0,
            technology_nm=14,
        ),
    ),
}


def device(name: str | Path) -> ConfigTable:
    """The accelerator of that name as its family's `Configs`, of length 1; `find_device` says where
    it is from, and what is raised.
    """
    found = find_device(name)
    return found.configs(**found.parameters)


def find_device(name: str | Path) -> Device:
    """The device of that name. A name that ends in .json is a device file, as `save_device` writes
    it.

    Raises ValueError for an unknown name, with the nearest name and the whole list, and for a file
    that is missing or holds no device.
    """
    if str(name).endswith(".json"):
        return load_device(name)
    if name in DEVICES:
        return DEVICES[name]
    raise ValueError(
        f"unknown device {name!r}; {nearest(name, DEVICES)}the devices are "
        f"{', '.join(DEVICES)}, or a device file that ends in .json"
    )


def save_device(path: str | Path, configs: ConfigTable, provenance: str) -> None:
    """Write the one accelerator of `configs` as a device file, which `device` reads.

    Raises ValueError for several accelerators, and for a path that does not end in .json.
    """
    path = Path(path)
    if len(configs) != 1 or path.suffix != ".json":
        raise ValueError(
            f"a device file holds one accelerator and ends in .json, got {len(configs)} and "
            f"{str(path)!r}"
        )
    table = {"family": configs.FAMILY, "provenance": provenance, "parameters": configs.row(0)}
    unfinished = path.with_suffix(".json.part")
    unfinished.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def load_device(path: str | Path) -> Device:
    """The device in a file. Raises ValueError that names the file and what is wrong with it."""
    if not Path(path).is_file():
        raise ValueError(
            f"{str(path)!r} is not a device file: there is none; "
            f"'nas measure --to {path}' writes one"
        )
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        found = Device(table["provenance"], CONFIGS[table["family"]], table["parameters"])
        found.configs(**found.parameters)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is not a device file ({type(error).__name__}: {error}); write one with "
            "save_device, of a family among " + ", ".join(CONFIGS)
        ) from error
    return found
