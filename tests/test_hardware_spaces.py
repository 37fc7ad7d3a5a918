"""Spaces of accelerators: every choice is a configuration, of the family that has the choices."""

import numpy as np
import pytest

from hwmodel import Layers, price
from hwmodel.workload import conv
from nas.pricing import price_designs
from search_spaces import hardware, joint
from search_spaces.space import Space

LAYERS = Layers.from_rows([conv("c", height=8, width=8, in_channels=16, out_channels=16, kernel=3)])


@pytest.mark.parametrize("name", hardware.FAMILIES)
def test_samples_are_configurations_of_their_family(name):
    space, _ = hardware.FAMILIES[name]
    rng = np.random.default_rng(0)
    designs = [space.decode(encoding) for encoding in space.sample(40, rng)]
    configs = hardware.configs_of(designs)
    assert name == configs.FAMILY and len(configs) == 40
    cost = price(LAYERS, configs)
    assert np.isfinite(cost.latency_s).all() and (cost.area_mm2 > 0).all()
    assert cost.feasible.any()


@pytest.mark.parametrize("name", hardware.FAMILIES)
def test_every_accelerator_is_the_one_of_its_encoding(name):
    whole = hardware.FAMILIES[name].space
    space = Space([d for d in whole.decisions if d.name in whole.names[:3]])
    chosen, encodings, configs = hardware.every(space)
    assert len(encodings) == len(configs) == chosen.n_designs
    at = len(encodings) // 2
    design = {d.name: d.values[0] for d in whole.decisions} | chosen.decode(encodings[at])
    assert hardware.configs_of([design]).row(0) == configs.row(at)


@pytest.mark.parametrize("name", hardware.FAMILIES)
def test_joint_designs_of_any_family_are_priced(name):
    space = joint("cell", name)
    designs = [space.decode(each) for each in space.sample(6, np.random.default_rng(1))]
    for metrics, reason in price_designs("cell", designs):
        assert reason or metrics["latency_s"] > 0


def test_decisions_of_two_families_are_refused():
    with pytest.raises(ValueError, match=r"no accelerator family has all of hw\.pe_x, hw\.rows"):
        hardware.family_of(["hw.rows", "hw.pe_x", "cell.width"])
