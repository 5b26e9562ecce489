"""Folders of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kora.runs.results import RunResult, write_results
from kora.runs.search import (
    config_hash,
)


def write_run(
    config: dict[str, Any], name: str = "version_0", *, strategy: str = "LoRA", **record: Any
) -> Path:
    """The files of a finished run of a config; `record` changes its record."""
    folder = Path(config["runs_dir"]) / config["experiment"] / strategy / "seed3" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    plain: dict[str, Any] = {key: {} for key in ("metrics", "baselines", "protocol", "audit")}
    plain |= {key: {} for key in ("parameters", "seconds", "backbone")}
    names = {"experiment": config["experiment"], "strategy": strategy, "stage": "fit", "seed": 3}
    values = {"config_sha256": config_hash(config), "peak_memory_mib": None, **record}
    write_results(folder, RunResult(**{**plain, **names, **values}))
    return folder
