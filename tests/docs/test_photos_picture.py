"""The picture of the photographs shows what the values in docs/results say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.cli import REPOSITORY

DOCS = REPOSITORY / "docs"
HEAD = "title,metric,strategy,n,seeds,values\n"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "photos_picture.py"))


def test_a_strategy_is_paired_with_the_probe_by_seed(
    script: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "photos_20.csv").write_text(
        HEAD
        + "t,test/accuracy,LoRA,3,1 2 4,0.5 0.4 0.9\n"
        + "t,test/accuracy,LinearProbe,3,1 2 3,0.4 0.3 0.2\n"
        + "t,test/accuracy,majority class,,,\n"
    )
    found = script["read"](tmp_path)
    assert list(found) == [20], "what is not measured yet is left out"
    assert found[20]["LoRA"] == pytest.approx((10.0, 0.0, 2))
    assert list(found[20]) == ["LoRA"]


def test_what_another_machine_trained_is_paired_with_its_own_probe(
    script: dict[str, Any], tmp_path: Path
) -> None:
    cached = (
        "t,test/accuracy,LinearProbe,2,1 2,0.3 0.2\nt,test/accuracy,LoRA-layers,2,1 2,0.4 0.3\n"
    )
    other = "t,test/accuracy,LinearProbe,2,1 2,0.4 0.3\nt,test/accuracy,LoRA,2,1 2,0.6 0.5\n"
    (tmp_path / "photos_95.csv").write_text(HEAD + cached)
    (tmp_path / "photos_95_backbone.csv").write_text(HEAD + other)
    found = script["read"](tmp_path)[95]
    assert {name: ahead.mean for name, ahead in found.items()} == pytest.approx(
        {"LoRA": 20.0, "LoRA-layers": 10.0}
    )


def test_a_picture_keeps_what_it_was_drawn_from(script: dict[str, Any], tmp_path: Path) -> None:
    found = script["read"](DOCS / "results")
    with Image.open(script["draw"](found, tmp_path / "drawn.png")) as picture:
        assert picture.info["Description"] == script["describe"](found)


def test_the_picture_in_the_docs_is_of_the_values_in_the_docs(script: dict[str, Any]) -> None:
    with Image.open(DOCS / "images/photos.png") as picture:
        drawn = picture.info["Description"]
    assert drawn == script["describe"](script["read"](DOCS / "results"))
