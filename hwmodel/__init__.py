"""What it costs to run a network on a machine: latency, energy, area, traffic, in closed form.

from hwmodel import Layers, device, price
from hwmodel.workload import conv, dense

layers = Layers.from_rows([
    conv("stem", height=32, width=32, in_channels=3, out_channels=16, kernel=3),
    dense("head", in_features=16, out_features=10),
])
price(layers, device("systolic-edge-16")).latency_s
"""

from hwmodel.config import Configs
from hwmodel.cost import Cost, price, price_layers
from hwmodel.devices import DEVICES, device
from hwmodel.workload import Layers

__all__ = ["DEVICES", "Configs", "Cost", "Layers", "device", "price", "price_layers"]
