"""Tasks: LightningModules that join a backbone, a strategy and a head."""

from kora.tasks.base import AdapterTask
from kora.tasks.classification import ClassificationTask

__all__ = ["AdapterTask", "ClassificationTask"]
