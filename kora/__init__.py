"""KoRA: honest experiments with adapters for frozen vision transformers."""

from typing import TYPE_CHECKING, Any

from kora.start_up import leave_parts_for_later

if TYPE_CHECKING:
    from kora.adaptation.adapt import adapt
    from kora.tasks.attach import attach
    from kora.tasks.load import load_adapter
    from kora.tasks.multi import MultiTask

__version__ = "0.1.0"
__all__ = ["MultiTask", "__version__", "adapt", "attach", "load_adapter"]

leave_parts_for_later()


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for, so that the command line starts soon."""
    if name == "load_adapter":
        from kora.tasks.load import load_adapter

        return load_adapter
    if name == "MultiTask":
        from kora.tasks.multi import MultiTask

        return MultiTask
    if name == "adapt":
        from kora.adaptation.adapt import adapt

        return adapt
    if name == "attach":
        from kora.tasks.attach import attach

        return attach
    raise AttributeError(f"module 'kora' has no attribute '{name}'")
