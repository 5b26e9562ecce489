"""The callbacks that every task brings along: they change nothing but the time."""

from __future__ import annotations

from kora.tasks.denormals import FlushedDenormals
from kora.tasks.feature_cache_callback import KeptInputs
from kora.tasks.merging import MergedEvaluation
from kora.tasks.slow_bfloat16 import SlowBfloat16

__all__ = ["TASK_CALLBACKS"]

TASK_CALLBACKS = (MergedEvaluation, KeptInputs, FlushedDenormals, SlowBfloat16)
