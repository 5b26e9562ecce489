"""Leave out, at the start of a process, what of other libraries nobody has asked for yet.

Lightning imports all of torchmetrics, and torchmetrics imports transformers and scipy.signal for
its metrics of text and sound: a third of the start of every command. Here its metrics of text,
images and sound wait until they are used. So does W&B, 8 % of the start, which a helper of
timm's own training script imports. Every name stays where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["leave_parts_for_later"]

_METRICS = "torchmetrics"
_AREAS = ("audio", "image", "multimodal", "text", "video")
#: By the module that imports it: what waits, with all that is below.
_LATER = {
    _METRICS: (
        "scipy.signal",
        *(f"{parent}.{area}" for parent in (_METRICS, f"{_METRICS}.functional") for area in _AREAS),
    ),
    "timm.utils.summary": ("wandb",),
}


def leave_parts_for_later() -> None:
    """Have the first imports of torchmetrics and timm in this process leave parts for later."""
    found = {finder.importer for finder in sys.meta_path if isinstance(finder, _Finder)}
    for importer in _LATER.keys() - found - sys.modules.keys():
        sys.meta_path.insert(0, _Finder(importer))


class _Finder(MetaPathFinder):
    """Finds an importer once; while it is imported, also modules that stand for what waits."""

    def __init__(self, importer: str) -> None:
        self.importer = importer
        self.importing = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.importing:
            later = _LATER[self.importer]
            waits = any(fullname == one or fullname.startswith(f"{one}.") for one in later)
            return ModuleSpec(fullname, _Waiting(self), is_package=True) if waits else None
        if fullname != self.importer:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        spec.loader = _InParts(spec.loader, self)
        return spec


class _InParts(Loader):
    """Loads the importer as its own loader does, without what waits."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self.finder.importing = True
        try:
            self.loader.exec_module(module)
        finally:
            self.finder.importing = False
            sys.meta_path.remove(self.finder)
            standing_in = [
                name
                for name, one in sys.modules.items()
                if isinstance(loader := getattr(one, "__loader__", None), _Waiting)
                and loader.finder is self.finder
            ]
            for name in standing_in:
                del sys.modules[name]
                parent, _, last = name.rpartition(".")
                if parent:
                    vars(sys.modules.get(parent, module)).pop(last, None)
        for name in [one for one in sys.modules if one.startswith(self.finder.importer)]:
            _provide(sys.modules[name])


class _Waiting(Loader):
    """Makes a module that stands for one which waits.

    All its names are placeholders while the importer is imported, and afterwards the real things.
    """

    def __init__(self, finder: _Finder) -> None:
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def placeholder(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            found = _Placeholder(module.__name__, name)
            return found if self.finder.importing else found.real()

        module.__getattr__ = placeholder  # type: ignore[method-assign]


class _Placeholder:
    """Where a name really is."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def real(self) -> Any:
        return getattr(import_module(self.module), self.name)


def _provide(module: ModuleType) -> None:
    """Replace the placeholders in a module: packages find the real thing when they are asked."""
    waiting = {k: v for k, v in vars(module).items() if isinstance(v, _Placeholder)}
    if not hasattr(module, "__path__"):  # its functions look names up without asking it
        for name, placeholder in waiting.items():
            setattr(module, name, placeholder.real())
        return
    for name in waiting:
        delattr(module, name)

    def find(name: str) -> Any:
        if name in waiting:
            found = waiting[name].real()
        elif f"{module.__name__}.{name}" in _LATER[_METRICS]:
            found = import_module(f"{module.__name__}.{name}")
        else:
            raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
        setattr(module, name, found)
        return found

    if module.__name__ in (_METRICS, f"{_METRICS}.functional"):
        module.__getattr__ = find  # type: ignore[method-assign]
