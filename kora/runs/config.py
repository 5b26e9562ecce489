"""Convert configs and records of earlier versions to the current options and classes.

The default of a new option keeps the earlier behaviour. So a config without the option and one with
its default describe the same run, and a record without it the same strategy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

__all__ = ["MOVED", "OURS", "current", "flat", "plain_name", "with_defaults"]

#: Modules of this project, with base classes: a file may name their subclasses.
OURS = {
    "kora.adapters": (
        *("Strategy", "Composer", "Readout", "NodeForm", "NodeMatrix", "Injection", "Feedback"),
    ),
    "kora.heads": ("DepthHead", "DetectionHead", "LayerSummaries", "SegmentationHead"),
    "kora.losses": ("DepthLoss", "SegmentationLoss"),
    "kora.tasks": ("AdapterTask",),
    "kora.backbone.vit": ("Backbone",),
    "kora.backbone.sharding": ("ShardedBackbone",),
    "kora.metrics.detection_protocol": ("DetectionProtocol",),
    "kora.metrics.protocol": ("DepthProtocol",),
    "kora.metrics.segmentation_protocol": ("SegmentationProtocol",),
    "datamodules": ("ImageDataModule", "Subset"),
}
#: Classes that moved: path in configs of earlier versions, and current path.
MOVED = {
    "kora.backbones.Backbone": "kora.backbone.vit.Backbone",
    "kora.sharding.ShardedBackbone": "kora.backbone.sharding.ShardedBackbone",
}


def with_defaults(config: Any) -> Any:
    """A copy of a config or record in plain types, with all options of its classes filled in.

    Options without a plain default are not filled in. Nor are the options of classes that are
    neither part of this project nor loaded: a file of somebody else must not cause an import.
    """
    if isinstance(config, list | tuple):
        return [with_defaults(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    made = {key: with_defaults(value) for key, value in _of_nodes(config, fill=True).items()}
    if isinstance(made.get("class_path"), str):
        made["class_path"] = MOVED.get(made["class_path"], made["class_path"])
    if isinstance(made.get("class_path"), str) and isinstance(made.get("init_args"), dict):
        made["init_args"] = {**_defaults(made["class_path"]), **made["init_args"]}
    return made


def current(config: Any, tell: Callable[[Any], object] = lambda form: None) -> Any:
    """A copy of a config or record in plain types, with KoRA in its current options.

    `tell` is called with each `node_form` that was converted.
    """
    if isinstance(config, list | tuple):
        return [current(item, tell) for item in config]
    if not isinstance(config, Mapping):
        return config
    made = _of_nodes(config)
    if made is not config:
        tell(made["init_args"]["node_form"])
    return {key: current(value, tell) for key, value in made.items()}


_ADAPTERS = "kora.adapters."
#: Former options of KoRA itself.
_OF_NODES = ("rank", "inject", "pool", "sites", "blocks", "dropout")
#: Former options that mattered only with a `node_form`; `PaperForm` has no counterpart.
_OF_SOME = ("node_sites", "node_blocks")


def _of_nodes(described: Mapping[str, Any], *, fill: bool = False) -> Mapping[str, Any]:
    """A KoRA in its current options, with `fill` also its default form; others unchanged."""
    if described.get("class_path") not in ("KoRA", f"{_ADAPTERS}KoRA", f"{_ADAPTERS}kora.KoRA"):
        return described
    given = _table(described.get("init_args"))
    old = {key: given[key] for key in (*_OF_NODES, *_OF_SOME) if given.get(key) is not None}
    rest = {key: value for key, value in given.items() if key not in (*_OF_NODES, *_OF_SOME)}
    form = given.get("node_form")
    path = form.get("class_path") if isinstance(form, Mapping) else form
    if path in ("NodeForm", f"{_ADAPTERS}NodeForm", f"{_ADAPTERS}node_form.NodeForm"):
        rest["node_form"] = _refined(old, _table(_table(form).get("init_args")))
    elif form is None and (old or fill) and not old.keys() & set(_OF_SOME):
        rest["node_form"] = {"class_path": f"{_ADAPTERS}PaperForm", "init_args": old}
    else:
        return described
    return {**described, "init_args": rest}


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _refined(old: Mapping[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        key: form[key] for key in ("norm", "dropout", "node_dropout") if key in form
    }
    made |= {key: old[key] for key in ("pool", "sites", "blocks") if key in old}
    if old.get("inject", True):
        keys = ("rank", "sites", "blocks", "dropout")
        lora = {key: old[key] for key in keys if key in old}
        made["inject"] = {"class_path": f"{_ADAPTERS}Injection", "init_args": lora}
        made |= {key: old[f"node_{key}"] for key in ("sites", "blocks") if f"node_{key}" in old}
    name, arguments = "PlainMatrix", {key: form[key] for key in ("init",) if key in form}
    if not form.get("direct", True):
        name, arguments = "FactoredMatrix", {key: old[key] for key in ("rank",) if key in old}
    elif form.get("shared"):
        name = "SharedMatrix"
    elif form.get("orthogonal", "none") == "hard":
        name, arguments = "OrthogonalMatrix", {}
    elif form.get("orthogonal", "none") == "soft":
        name, arguments = "DecorrelatedMatrix", {"factor": form.get("penalty", 0.0)}
    made["matrix"] = {"class_path": f"{_ADAPTERS}{name}", "init_args": arguments}
    return {"class_path": f"{_ADAPTERS}RefinedForm", "init_args": made}


def plain_name(option: str) -> str:
    """The dotted name of an option without `init_args`, which may be left out."""
    return ".".join(part for part in option.split(".") if part != "init_args")


def flat(value: Mapping[str, Any], prefix: str = "", *, objects: bool = False) -> dict[str, Any]:
    """The leaves of a config or record by their dotted names, as on the command line.

    Names leave out `init_args`. With `objects`, each table with a class is there as a whole, too.
    """
    found: dict[str, Any] = {}
    for name, item in value.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}".lstrip(".")
        if isinstance(item, Mapping):
            found |= {key: item} if objects and "class_path" in item else {}
            found |= flat(item, key, objects=objects)
        elif name != "init_args":
            found[key] = item
    return found


def _defaults(class_path: str) -> dict[str, Any]:
    """The plain defaults of the options of a class, by name; empty for unknown classes."""
    module, _, name = class_path.rpartition(".")
    try:
        found = import_module(module) if module in OURS else sys.modules[module]
        return _of_class(vars(found)[name])
    except (ImportError, KeyError, AttributeError, TypeError, ValueError):
        return {}


@cache
def _of_class(kind: type) -> dict[str, Any]:
    from jsonargparse import ArgumentParser  # not at the top: a comparison does not need it

    parser = ArgumentParser()
    parser.add_class_arguments(kind)
    defaults = vars(parser.get_defaults())
    return {key: with_defaults(value) for key, value in defaults.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
