"""The callbacks that every task brings along: they change nothing but the time."""

from __future__ import annotations

from kora.denormals import FlushedDenormals
from kora.feature_cache_callback import KeptInputs
from kora.merging import MergedEvaluation
from kora.slow_bfloat16 import SlowBfloat16

__all__ = ["TASK_CALLBACKS"]

TASK_CALLBACKS = (MergedEvaluation, KeptInputs, FlushedDenormals, SlowBfloat16)
