"""Leave out, at the start of a process, what of other libraries nobody has asked for yet.

Lightning imports all of torchmetrics, which imports transformers, scipy.signal and matplotlib for
metrics of text and sound and their plots. Lightning and timm import torch's compiler, for methods
that it must leave alone, and a helper of timm's own training script imports W&B. Together that is
half of the start of every command. Here it waits until it is used. Every name stays where it was.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["leave_parts_for_later"]

_METRICS = "torchmetrics"
_AREAS = ("audio", "image", "multimodal", "text", "video")
_COMPILER = "torch._dynamo"
#: Registers the embedded model with timm.
_NANO = "kora.backbone.nano"
#: By the module that imports it: what waits, with all that is below.
_LATER = {
    _METRICS: (
        "scipy.signal",
        "matplotlib",
        *(f"{parent}.{area}" for parent in (_METRICS, f"{_METRICS}.functional") for area in _AREAS),
    ),
    "lightning": (_COMPILER,),
    "timm": (_COMPILER,),
    "torchvision": (_COMPILER,),
    "timm.utils.summary": ("wandb",),
}


def leave_parts_for_later() -> None:
    """Have the first imports of these libraries in this process leave parts for later.

    timm also gets to know the embedded model, whenever it is imported.
    """
    found = {finder.importer for finder in sys.meta_path if isinstance(finder, _Finder)}
    for importer in _LATER.keys() - found - sys.modules.keys():
        sys.meta_path.insert(0, _Finder(importer))
    if "timm" in sys.modules:
        import_module(_NANO)


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
        if self.finder.importer == _METRICS:
            _provide(module)
            _provide(sys.modules[f"{_METRICS}.functional"])
        if self.finder.importer == "timm":
            import_module(_NANO)


class _Waiting(Loader):
    """Makes a module that stands for one which waits.

    All its names are stand-ins while the importer is imported, and afterwards the real things.
    """

    def __init__(self, finder: _Finder) -> None:
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def named(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            if not self.finder.importing:
                return getattr(import_module(module.__name__), name)
            return _StandIn(
                name, self.finder, lambda: getattr(import_module(module.__name__), name),
                module=module.__name__,
            )  # fmt: skip

        module.__getattr__ = named  # type: ignore[method-assign]


class _StandIn(type):
    """Makes a class that stands for what waits: a class, a function, or a part of one.

    It is a type, so it fits into annotations, and into `isinstance`.
    """

    def __new__(
        cls, name: str, finder: _Finder, get: Callable[[], Any], *, module: str
    ) -> _StandIn:
        return super().__new__(cls, name, (), {})

    def __init__(cls, name: str, finder: _Finder, get: Callable[[], Any], *, module: str) -> None:
        super().__init__(name, (), {})
        cls.finder, cls.get, cls.module = finder, get, module

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not cls.finder.importing:
            return getattr(cls.get(), name)
        return _StandIn(name, cls.finder, lambda: getattr(cls.get(), name), module=cls.module)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.finder.importing:
            return _made_later(cls.finder, cls.get, args, kwargs)
        return cls.get()(*args, **kwargs)

    def __instancecheck__(cls, thing: Any) -> bool:
        return cls.module in sys.modules and isinstance(thing, cls.get())


def _made_later(
    finder: _Finder, get: Callable[[], Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    """The function that a call would give, such as a decorated one; it calls when it is called."""
    made = functools.cache(lambda: get()(*args, **kwargs))

    def later(*more: Any, **named: Any) -> Any:
        if finder.importing:
            return _made_later(finder, made, more, named)
        return made()(*more, **named)

    like = args[0] if args and isinstance(args[0], FunctionType) else None
    return later if like is None else functools.wraps(like)(later)


def _provide(module: ModuleType) -> None:
    """Take the stand-ins out of a package, which finds the real things when it is asked."""
    waiting = {k: v for k, v in vars(module).items() if isinstance(v, _StandIn)}
    for name in waiting:
        delattr(module, name)

    def find(name: str) -> Any:
        if name in waiting:
            found = waiting[name].get()
        elif f"{module.__name__}.{name}" in _LATER[_METRICS]:
            found = import_module(f"{module.__name__}.{name}")
        else:
            raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
        setattr(module, name, found)
        return found

    module.__getattr__ = find  # type: ignore[method-assign]
