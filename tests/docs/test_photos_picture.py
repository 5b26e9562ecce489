"""The picture of the photographs shows what the values in docs/results say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from PIL import Image

from tests.cli.support import REPOSITORY

DOCS = REPOSITORY / "docs"
HEAD = "title,metric,strategy,n,seeds,values,mean,std,ci95_low,ci95_high\n"


def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "photos_picture.py"))


def test_a_line_joins_a_strategy_over_the_sizes_that_were_measured(tmp_path: Path) -> None:
    for size, mean in ((1, 0.2), (20, 0.5)):
        (tmp_path / f"photos_{size}.csv").write_text(
            HEAD
            + f"t,test/accuracy,LoRA,5,1 2,0 0,{mean},0.01,{mean - 0.02},{mean + 0.02}\n"
            + "t,test/accuracy,majority class,,,,0.01,,,\n"
        )
    lines = script()["read"](tmp_path)
    assert list(lines) == ["LoRA"]
    assert [(point.x, point.mean) for point in lines["LoRA"]] == [(1, 0.2), (20, 0.5)]
    assert lines["LoRA"][0].half_width - 0.02 < 1e-9


def test_the_picture_in_the_docs_is_of_the_values_in_the_docs() -> None:
    made = script()
    with Image.open(DOCS / "images/photos.png") as picture:
        drawn = picture.info["Description"]
    assert drawn == made["describe"](made["read"](DOCS / "results"))
