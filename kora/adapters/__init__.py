"""Adapter strategies.

Imports every module of this folder and of `graph/`, and exports its `__all__`: a new file needs no
registration.
"""

from __future__ import annotations

import importlib
import pkgutil

from kora.adapters.arguments import describe
from kora.adapters.base import Strategy, resized
from kora.adapters.baselines import FullFineTune, LinearProbe
from kora.adapters.bottleneck import Bottleneck
from kora.adapters.fusion import AdapterFusion, LowRankFusion
from kora.adapters.graph.composers import Composer, Sequential
from kora.adapters.graph.readouts import ClsReadout, Readout, TokenReadout
from kora.adapters.kora import KoRA
from kora.adapters.lora import LoRA
from kora.adapters.low_rank import LowRankDelta

__all__ = [
    "AdapterFusion",
    "Bottleneck",
    "ClsReadout",
    "Composer",
    "FullFineTune",
    "KoRA",
    "LinearProbe",
    "LoRA",
    "LowRankDelta",
    "LowRankFusion",
    "Readout",
    "Sequential",
    "Strategy",
    "TokenReadout",
    "describe",
    "resized",
]

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    _found = importlib.import_module(_module.name)
    globals().update({_name: getattr(_found, _name) for _name in getattr(_found, "__all__", ())})
