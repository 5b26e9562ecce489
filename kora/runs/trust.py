"""Which classes the files of other people may name: a closed list, so a run is data, never code.

A config that its user has written is code: it may name any class. A run folder, an adapter folder
and the files they lead to are data: they may name the classes of this project, the optimisers of
torch and the usual callbacks, and those of the modules that the user trusts (`--trust MODULE`).
jsonargparse enforces the list at the one place where it imports by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse._common import parsing_settings
from jsonargparse._paths import Path as ConfigPath

from kora.console.errors import explain
from kora.runs.config import MOVED, OURS, current

__all__ = [
    "build",
    "build_arguments",
    "is_of_a_run",
    "known_classes",
    "modules_to_trust",
    "only_known_classes",
    "policy_for",
    "split_trust",
]

T = TypeVar("T")

#: Commands that read the configs of runs.
_READERS = ("validate", "test", "predict", "cka", "inspect", "export")
#: Environment variable that passes the policy on to child processes; holds the trusted modules.
_INHERITED = "KORA_TRUST"  # read by datamodules/download.py too

#: Lightning's classes, by module, that only watch or choose, and take plain values.
_LIGHTNING = {
    "lightning.pytorch.callbacks": (
        "DeviceStatsMonitor", "EarlyStopping", "GradientAccumulationScheduler",
        "LearningRateMonitor", "ModelCheckpoint", "ModelSummary", "RichModelSummary",
        "RichProgressBar", "TQDMProgressBar", "Timer",
    ),
    # Not WandbLogger: it takes an address, and would send the user's key there.
    "lightning.pytorch.loggers": ("CSVLogger", "TensorBoardLogger"),
    "lightning.pytorch.strategies": ("DDPStrategy", "SingleDeviceStrategy"),
}  # fmt: skip


@cache
def known_classes() -> frozenset[str]:
    """Import paths of the classes that any file may name: public path and place of definition."""
    found: list[tuple[str, Any]] = []
    for module_name, bases in OURS.items():
        module = import_module(module_name)
        kinds = tuple(getattr(module, base) for base in bases)
        found += [
            (f"{module_name}.{name}", value)
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, kinds)
        ]
    optim = import_module("torch.optim")
    found += [
        (f"torch.optim.{name}", value)
        for name, value in vars(optim).items()
        if isinstance(value, type) and issubclass(value, optim.Optimizer)
    ]
    for module_name, names in _LIGHTNING.items():
        module = import_module(module_name)
        found += [(f"{module_name}.{name}", getattr(module, name)) for name in names]
    # The config in a run folder names this if its user named no optimiser.
    found.append(("kora.tasks.base._adamw", import_module("kora.tasks.base")._adamw))
    defined = {f"{kind.__module__}.{kind.__qualname__}" for _, kind in found}
    return frozenset(defined | {path for path, _ in found} | MOVED.keys())


@contextmanager
def only_known_classes(trust: Sequence[str] = ()) -> Iterator[None]:
    """Within, jsonargparse accepts only `known_classes` and classes of modules in `trust`."""
    before = dict(parsing_settings)
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*known_classes(), *trust],
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    finally:
        parsing_settings.update(before)


def build(kind: Callable[..., T], described: Any, *, origin: str, trust: Sequence[str] = ()) -> T:
    """The object that a file describes by class path and arguments.

    `origin` is the file, for messages. Classes of the modules of `trust` may be named too.

    Raises:
        ValueError: If it names another class, or arguments that the class does not take.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    made: T = _instantiated(parser, described, origin, trust)
    if not isinstance(made, cast(type, kind)):
        raise ValueError(f"{origin} describes no {kind.__name__}: found {described!r:.80}.")
    return made


def build_arguments(
    kind: type, described: Mapping[str, Any], *, origin: str, skip: set[str]
) -> dict[str, Any]:
    """The arguments of a class that a file describes, with the objects among them built.

    `origin` is the file, for messages. Arguments in `skip` are not described there.

    Raises:
        ValueError: As `build`.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "it", skip=skip, instantiate=False)
    made = _instantiated(parser, dict(described), origin, ())
    return {name: made[name] for name in described}


def _instantiated(parser: ArgumentParser, described: Any, origin: str, trust: Sequence[str]) -> Any:
    with only_known_classes(trust):
        try:
            options = parser.parse_object({"it": current(described)})
            return parser.instantiate(options).it
        except (ArgumentError, TypeError, ValueError, ImportError, AttributeError) as error:
            reason = explain(str(error), ()).removeprefix("it: ").replace("it.", "", 1)
            raise ValueError(f"{origin} cannot be used: {reason}") from error


@contextmanager
def policy_for(args: Sequence[str]) -> Iterator[None]:
    """Limit the classes that the files of a command may name, also in its child processes.

    A command that reads a run accepts only known classes. One that trains accepts all, unless one
    of its configs is in a run folder.
    """
    inherited = os.environ.get(_INHERITED)
    trust = (inherited or "").split() + split_trust(args)[1]
    with ExitStack() as ends:
        try:
            if inherited is not None or _reads_a_run(args):
                ends.enter_context(_closed(trust))
            else:
                ends.enter_context(_until_a_run_is_read(lambda: ends.enter_context(_closed(trust))))
            yield
        except ImportError as error:
            if not isinstance(error, ValueError):  # jsonargparse's refusal is both
                raise
            raise ValueError(explain(str(error), ())) from error


@contextmanager
def _closed(trust: Sequence[str]) -> Iterator[None]:
    """Within, only known classes are accepted, also in child processes."""
    before = os.environ.get(_INHERITED)
    os.environ[_INHERITED] = " ".join(trust)
    try:
        with only_known_classes(trust):
            yield
    finally:
        if before is None:
            del os.environ[_INHERITED]
        else:
            os.environ[_INHERITED] = before


@contextmanager
def _until_a_run_is_read(close: Callable[[], object]) -> Iterator[None]:
    """Within, call `close` as soon as the parser reads a file of a run, however it got there.

    An option of any class can name a file, a config another one (`config:`), and a link a run.
    """
    read_text = ConfigPath.read_text
    is_open = True

    def read(path: ConfigPath) -> str:
        nonlocal is_open
        if is_open and is_of_a_run(Path(path.absolute)):
            is_open = False
            close()
        return read_text(path)

    ConfigPath.read_text = read  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ConfigPath.read_text = read_text  # type: ignore[method-assign]


def _reads_a_run(args: Sequence[str]) -> bool:
    if args[0] in _READERS:
        return True
    apart = (re.sub("^-c(?=[^=])", "-c=", arg) for arg in args[1:])  # -cFILE is -c FILE
    words = [part for arg in apart for part in arg.split("=", 1)]
    pairs = list(pairwise(words))
    configs = [value for key, value in pairs if key in ("--config", "-c")]
    resumed = [value for key, value in pairs if key == "--resume" and Path(value).is_dir()]
    return bool(resumed) or any(is_of_a_run(Path(value)) for value in configs)


def is_of_a_run(file: Path) -> bool:
    """Whether a file, or the target of a link, is in a run folder."""
    places = {file.absolute().parent, file.resolve().parent}
    within = {above for place in places for above in place.parents}
    return any(map(is_run_folder, places)) or any(
        (above / "config.yaml").exists() and is_run_folder(above) for above in within
    )


def is_run_folder(folder: Path) -> bool:
    """Whether any run has written here; its configs do not count as the user's own."""
    parts = ("results.json", "checkpoints", "adapter", "splits.json", "metrics.csv")
    return any((folder / part).exists() for part in parts)


def modules_to_trust(config: Any) -> list[str]:
    """Modules, sorted, of the classes in a config that are not among `known_classes`."""
    if isinstance(config, Mapping):
        path = config.get("class_path")
        found = {m for value in config.values() for m in modules_to_trust(value)}
        if isinstance(path, str) and path not in known_classes():
            found.add(path.rpartition(".")[0])
        return sorted(found)
    if isinstance(config, list | tuple):
        return sorted({module for value in config for module in modules_to_trust(value)})
    return []


def split_trust(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments without `--trust MODULE`, and the modules. A file cannot give this option.

    Raises:
        ValueError: If no module follows.
    """
    rest: list[str] = []
    trusted: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--trust" or word.startswith("--trust="):
            name = word.partition("=")[2] or next(words, "")
            if not all(part.isidentifier() for part in name.split(".")):
                raise ValueError(
                    f"--trust {name}: expected the name of a module, such as my_adapters."
                )
            trusted.append(name)
        else:
            rest.append(word)
    return rest, trusted
