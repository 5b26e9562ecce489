"""Trials of kora adapt: in which order, under which names, and at which size."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kora.adaptation.boxes import BOXES
from kora.adaptation.candidates import Candidate
from kora.adaptation.masks import MASKS
from kora.adaptation.trials import Kind, Trial, _in_turn, _size_for
from kora.training.batched_fit import Setting


@pytest.mark.parametrize("kind", [BOXES, MASKS], ids=["boxes", "masks"])
def test_a_strategy_has_the_name_of_its_runs(kind: Kind) -> None:
    for candidate in (*kind.cached, *kind.on_images):
        head = candidate.name.partition("-queries")[1]
        assert candidate.name == candidate.strategy().label + head


def test_the_first_settings_of_all_come_before_the_second_of_any() -> None:
    settings = Setting(1e-2, 1e-3), Setting(1e-3, 1e-3)
    one, other = (Candidate(name, (), "", settings) for name in ("A", "B"))
    names = [trial.name for trial in _in_turn([one, other._replace(settings=settings[:1])])]
    assert names == ["trial_A_0.01_0.001", "trial_B_0.01_0.001", "trial_A_0.001"]
    assert Trial(one, settings[0]).name == names[0]


def test_the_backbone_gets_the_proportions_of_the_images(tmp_path: Path) -> None:
    for name, size in (("a.png", (60, 30)), ("b.png", (64, 32)), ("c.png", (9, 90))):
        Image.new("RGB", size).save(tmp_path / name)  # width and height
    (tmp_path / "notes.txt").write_text("no picture")
    high, wide = _size_for(tmp_path, "vit_nano", "pretrained", most=64)
    assert (high % 8, wide % 8) == (0, 0)
    assert wide / high == pytest.approx(2, abs=0.3), "of most images"
    assert high * wide == pytest.approx(64 * 64, rel=0.2)
