"""Every preset has a name of its own: in folders, tables and pictures no two are taken for one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cli import REPOSITORY, kora, results, tiny_config, write_config

Capture = pytest.CaptureFixture[str]

PRESETS = sorted((REPOSITORY / "configs/adapters").glob("*.yaml"))
#: Each holds strategies that are compared with each other; the further ones at one size.
FOLDERS = [
    REPOSITORY / "configs/adapters",
    *sorted((REPOSITORY / "configs/adapters/matched").iterdir()),
]


def made(described: Any) -> Any:
    """The object of a class path and its arguments."""
    if not isinstance(described, Mapping) or "class_path" not in described:
        return described
    module, _, name = described["class_path"].rpartition(".")
    arguments = {key: made(value) for key, value in described.get("init_args", {}).items()}
    return getattr(import_module(module), name)(**arguments)


def adapter_of(preset: Path) -> dict[str, Any]:
    content = yaml.safe_load(preset.read_text(encoding="utf-8"))
    adapter: dict[str, Any] = content["model"]["init_args"]["adapter"]
    return adapter


def label_of(preset: Path) -> str:
    label: str = made(adapter_of(preset)).label
    return label


@pytest.mark.slow
def test_a_preset_of_each_class_trained_into_one_experiment_is_a_strategy_under_its_name(
    here: Path, capfd: Capture
) -> None:
    presets = {adapter_of(preset)["class_path"]: preset for preset in PRESETS}.values()
    for style in ("paint", "studio"):  # what the fusions fuse
        config = tiny_config(experiment=style)
        config["data"]["init_args"]["style"] = style
        config["model"]["init_args"]["adapter"] = {
            "class_path": "kora.adapters.Bottleneck", "init_args": {"rank": 2},
        }  # fmt: skip
        assert kora(capfd, "fit", "--config", write_config(here / "s.yaml", config)).code == 0
    sources = [f"runs/{style}/Bottleneck/seed0/version_0/adapter" for style in ("paint", "studio")]
    quick = ["--leave_out_test", "true", "--trainer.max_steps", "1"]
    for preset in presets:
        more = [*quick]
        if "fusion" in preset.stem:
            more += ["--model.adapter.sources", str(sources)]
        outcome = kora(capfd, "fit", "--config", "tiny.yaml", "--config", preset, *more)
        assert outcome.code == 0, f"{preset}: {outcome.err}"
    runs = list(Path("runs/tiny").glob("*/seed0/version_*"))
    names = {results(run)["strategy"] for run in runs}
    assert len(names) == len(runs) == len(presets) > 10
    assert names == {label_of(preset) for preset in presets}
    assert all(run.parts[-3] == results(run)["strategy"] for run in runs)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_strategies_that_are_compared_have_different_names(folder: Path) -> None:
    presets = sorted(folder.glob("*.yaml"))
    assert len({label_of(preset) for preset in presets}) == len(presets)
