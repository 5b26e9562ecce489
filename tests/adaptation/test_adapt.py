"""kora adapt as a whole: from a folder of pictures to a model, a sentence and a page."""

from __future__ import annotations

import csv
import errno
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import kora as package
from kora.adaptation import adapt as module
from kora.adaptation import results_folder
from kora.adaptation.adapt import Adapted, StoppedError, adapt
from kora.adaptation.call import Call
from kora.adaptation.candidates import CACHED, THROUGH
from kora.adaptation.search import Search, Searched, Tried
from kora.analysis.statistics import wilson
from kora.runs.processes import Stop
from kora.runs.results import read_results
from kora.training.batched_fit import Setting
from tests.support.cli import kora
from tests.support.pictures import CLASSES, write_pictures

pytestmark = pytest.mark.runs

NANO = {"backbone": "vit_nano"}


@pytest.fixture(scope="module", autouse=True)
def _short_fits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("kora.adaptation.search._MOST", 8)
        monkeypatch.setattr("kora.adaptation.call.USUAL_MINUTES", 0)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapt")
    write_pictures(place / "photos", 15)
    return place


@pytest.fixture(scope="module")
def result(work: Path) -> Adapted:
    found = adapt(work / "photos", out=work / "out", **NANO)
    assert isinstance(found, Adapted)
    return found


def test_the_best_by_validation_is_tested_once_beside_the_linear_probe(result: Adapted) -> None:
    runs = [read_results(p.parent) for p in sorted(result.folder.glob("*/seed0/*/results.json"))]
    names = {run.strategy for run in runs}
    assert names == {result.strategy, "LinearProbe"}
    (mine,) = (run for run in runs if run.strategy == result.strategy)
    assert mine.metrics["test/accuracy"] == pytest.approx(result.accuracy)
    assert mine.protocol["sizes"] == {"train": 48, "val": 0, "test": 12}
    low, high = result.interval
    assert low < result.accuracy < high
    with (result.folder / "search.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["folds"] == "5"]
    best: dict[str, float] = {}
    for row in rows:
        best[row["strategy"]] = max(best.get(row["strategy"], 0.0), float(row["accuracy"]))
    assert max(best.values()) - best[result.strategy] < 0.08, "a standard error of 48 pictures"


def test_the_sentence_has_the_interval_the_probe_and_chance(result: Adapted) -> None:
    assert re.match(
        rf"{result.strategy} tells the 4 classes apart in [\d.]+ % of 12 test pictures "
        r"\(95 % interval [\d.]+ % to [\d.]+ %; guessing 25.0 %",
        result.sentence,
    )
    assert ("linear probe" in result.sentence) == (result.strategy != "LinearProbe")


def test_the_page_needs_no_network_and_shows_what_was_found(result: Adapted) -> None:
    page = result.page.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert result.sentence in page.replace("&#39;", "'")
    for heading in ("Use it", "What would help most", "What was tried", "Classes, the hardest"):
        assert f"<h2>{heading}" in page
    helps = page[page.index("<h2>What would help most") :]
    assert "<li>Minutes: " in helps[: helps.index("</li>")], "the first, as it gained most"
    assert all(name in page for name in CLASSES)
    assert page.count("data:image/png;base64,") == 1
    wrong = round((1 - result.accuracy) * 12)
    assert page.count("data:image/jpeg;base64,") == wrong


def test_the_model_predicts_as_the_run_was_tested(result: Adapted, work: Path) -> None:
    splits = list(csv.DictReader((result.folder / "split_1.csv").open()))
    tests = [row for row in splits if row["part"] == "test"]
    said = result.model.predict([work / "photos" / row["path"] for row in tests])
    right = sum(p.name == row["label"] for p, row in zip(said, tests, strict=True))
    assert right / len(tests) == pytest.approx(result.accuracy)


def test_what_it_made_are_ordinary_runs(
    result: Adapted, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = kora(capfd, "compare", result.folder)
    assert told.code == 0
    assert "LinearProbe" in told.out
    out = work / "predictions"
    assert kora(capfd, "predict", result.run, "--images", work / "photos", "--out", out).code == 0
    told = kora(capfd, "export", result.run, "--format", "timm", "--out", work / "timm")
    assert told.code == 0, told.err
    config = yaml.safe_load((result.folder / f"configs/{result.strategy}.yaml").read_text())
    assert config["data"]["class_path"] == "datamodules.ImageTable"


def test_the_runs_read_kept_features_and_no_picture(result: Adapted) -> None:
    record = read_results(result.run).feature_cache
    assert record is not None
    assert record["splits"] == ["train", "test"]
    assert record["images_computed"] == 0
    log = (result.folder / f"logs/{result.strategy}.log").read_text()
    assert "feature cache, test: 12 images" in log


def test_called_again_it_computes_nothing(
    result: Adapted, work: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    passed: list[int] = []
    read = module.SharedPass.read
    fits: list[Any] = []

    def counted(self: Any, images: torch.Tensor) -> Any:
        passed.append(int(images.any()))  # what is timed is black
        return read(self, images)

    monkeypatch.setattr(module.SharedPass, "read", counted)
    monkeypatch.setattr("kora.adaptation.search.fit_together", lambda *a, **o: fits.append(a))
    again = adapt(work / "photos", out=work / "out", **NANO)
    assert capfd.readouterr().out.count("120 fits: kept") == len(CACHED)
    assert again is not None
    assert (again.run, again.sentence) == (result.run, result.sentence)
    assert (sum(passed), fits) == (0, [])
    page = (result.folder / "index.html").read_text(encoding="utf-8")
    assert re.search(r"The last call took \d+ s\.", page)


def test_a_dry_run_says_what_and_how_long_and_trains_nothing(
    work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = kora(capfd, "adapt", work / "photos", "--backbone", "vit_nano", "--dry-run",
                "--out", work / "dry", "--minutes", "100000")  # fmt: skip
    assert told.code == 0, told.err
    assert "60 pictures of 4 classes, 15 each." in told.out
    assert "48 pictures to train in five folds, 12 to test (drawn here)" in told.out
    for words in ("one pass of the frozen backbone", "MultiLayerProbe (reads six layers), 120 fits",
                  "LoRA-layers (LoRA, and six layers): ", "as the minutes allow"):  # fmt: skip
        assert words in told.out
    assert {path.name for path in (work / "dry").iterdir()} == {
        ".lock", "pictures.json", "split_1.csv",
    }  # fmt: skip


def test_with_minutes_it_tries_what_trains_through_the_backbone(
    result: Adapted, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fits are short here, and what is ahead by validation is taken.

    On twelve pictures two settings are not told apart, and the better one validates on all folds.
    """
    shutil.copytree(work / "out", tmp_path / "out")
    monkeypatch.setattr(module, "THROUGH_EPOCHS", 1)
    monkeypatch.setattr(module, "_told", lambda search, best, one: len(one.folds) == 3)
    monkeypatch.setattr(module, "_THROUGH_SETTINGS", module._THROUGH_SETTINGS[:2])
    monkeypatch.setattr(module, "THROUGH", module.THROUGH[:1])
    monkeypatch.setattr(module, "_lead", lambda search, best, one: 1.1)
    found = adapt(work / "photos", out=tmp_path / "out", minutes=500, **NANO)
    assert found is not None
    assert found.strategy == "LoRA-layers"
    trials = sorted((tmp_path / "out_trials").glob("LoRA-layers/seed0/version_*"))
    folds = []
    for trial in trials:
        told = read_results(trial)
        assert "test/accuracy" not in told.metrics
        folds.append(told.protocol["val_fold"])
    with (found.folder / "search.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["strategy"] == "LoRA-layers"]
    assert folds == [0, 0, 1, 2]
    assert sorted(row["folds"] for row in rows) == ["1", "3"]
    (leader,) = (row for row in rows if row["folds"] == "3")
    (best,) = re.findall(r'<tr class="best">(.*)</tr>', found.page.read_text())
    assert "LoRA-layers" in best
    assert f"<td>{float(leader['lr']):.2g}</td>" in best
    assert read_results(found.run).protocol["sizes"]["val"] == 0


def test_without_minutes_it_tries_one_that_trains_through_the_backbone(
    result: Adapted, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(work / "out", tmp_path / "out")
    monkeypatch.setattr("kora.adaptation.call.USUAL_MINUTES", 500)
    monkeypatch.setattr(module, "THROUGH_EPOCHS", 1)
    monkeypatch.setattr(module, "_told", lambda search, best, one: True)
    adapt(work / "photos", out=tmp_path / "out", **NANO)
    (trial,) = (tmp_path / "out_trials").glob("*/seed0/version_*")
    assert trial.parent.parent.name == "LoRA-layers"
    said = capfd.readouterr().out
    assert re.search(
        r"LoRA-layers \(.*: \d+ s a fit, 6 fits at most, as 500 minutes in all allow", said
    )
    assert re.search(r"BitFit \(.*: \d+ s a fit, only with --minutes\n", said)
    assert re.search(r"kora: .* is best on cached features: [\d.]+ % in validation\.", said)


@pytest.mark.parametrize(("right", "chosen"), [(190, True), (180, False), (170, False)])
def test_what_trains_through_the_backbone_is_chosen_if_it_is_ahead(
    right: int, chosen: bool
) -> None:
    labels = np.zeros(200, dtype=np.int64)
    tried = Tried(Setting(1e-3, 1e-3), np.where(np.arange(200) < 20, 1, 0))
    member = SimpleNamespace(candidate=CACHED[0])
    best = Searched(member, tried, [tried], True, [])
    mine = (np.arange(200) < right).astype(np.int8)
    one = module.Through(THROUGH[0], tried.setting, mine, (0,), 1.0)
    search = Search(labels, labels, Path(), "", 0)
    assert module._chosen(search, best, [one]).through == chosen


def test_a_lead_is_judged_picture_by_picture() -> None:
    """8 of 200 pictures more: as if on other pictures no more than a standard error."""
    labels = np.zeros(200, dtype=np.int64)
    missed = np.where(np.arange(200) < 20, 1, 0)
    search = Search(labels, labels, Path(), "", 0)
    tried = Tried(Setting(1e-3, 1e-3), missed)
    best = Searched(SimpleNamespace(), tried, [tried], True, [])
    right = (np.arange(200) >= 12).astype(np.int8)
    one = module.Through(CACHED[0], tried.setting, right, (0,), 1.0)
    assert module._lead(search, best, one) == pytest.approx(0.04 / np.sqrt(0.04 * 0.96 / 200))
    assert module._told(search, best, one)
    even = one._replace(right=(missed == 0).astype(np.int8))
    assert module._lead(search, best, even) == 0
    assert module._leader([even, one]) is one
    assert module._leader([even._replace(folds=(0, 1)), one]) is not one


def test_more_pictures_use_what_was_passed(
    result: Adapted, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(work / "photos", tmp_path / "photos")
    shutil.copytree(work / "out", tmp_path / "out")
    write_pictures(tmp_path / "photos", 5, first=15)
    passed: list[int] = []
    read = module.SharedPass.read

    def counted(self: Any, images: torch.Tensor) -> Any:
        passed.append(len(images) if images.any() else 0)
        return read(self, images)

    monkeypatch.setattr(module.SharedPass, "read", counted)
    found = adapt(tmp_path / "photos", out=tmp_path / "out", **NANO)
    assert found is not None
    assert sum(passed) == 20
    assert (tmp_path / "out/split_2.csv").is_file()
    assert read_results(found.run).protocol["sizes"] == {"train": 64, "val": 0, "test": 16}
    assert read_results(tmp_path / "out" / result.run.relative_to(result.folder)).finished


def test_of_changed_pictures_no_result_is_used_again(
    result: Adapted, work: Path, tmp_path: Path
) -> None:
    shutil.copytree(work / "photos", tmp_path / "photos")
    shutil.copytree(work / "out", tmp_path / "out")
    draws = np.random.default_rng(0)
    for path in (tmp_path / "photos").rglob("*.png"):
        noise = draws.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    found = adapt(tmp_path / "photos", out=tmp_path / "out", **NANO)
    assert found is not None
    assert found.accuracy < 0.6 < result.accuracy
    assert (tmp_path / "out/split_2.csv").is_file()


def test_results_among_the_pictures_are_refused(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(work / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    with pytest.raises(ValueError, match=r"among the pictures.*--out"):
        adapt(".", **NANO)
    assert not Path("runs").exists()


def test_folders_whose_names_have_dots_have_results_of_their_own() -> None:
    names = ["data.v1", "data.v2", "data", "table.csv"]
    found = [results_folder(Path(name)).name for name in names]
    assert found == ["adapt_data.v1", "adapt_data.v2", "adapt_data", "adapt_table"]


def test_the_commands_that_follow_can_be_pasted(tmp_path: Path) -> None:
    place, home = Path("-my photos"), Path("runs/adapt_my photos")
    call = Call(place, home, "vit_nano", "pretrained", None, 0, Stop())
    predict, _, more = (shlex.split(line) for _, line in call.commands(home / "LoRA"))
    assert predict[:3] == ["kora", "predict", "runs/adapt_my photos/LoRA"]
    assert more[:3] == ["kora", "adapt", "./-my photos"]
    assert more[more.index("--out") + 1] == "runs/adapt_my photos"
    assert more[more.index("--minutes") + 1] == "60"
    long = replace(call, minutes=90).commands(home / "LoRA")[-1][1]
    assert long.endswith("--minutes 180"), "more than it had"


@pytest.mark.parametrize("chosen", ["32-true", "bf16-mixed"])
def test_a_later_call_has_the_precision_of_the_first_whatever_is_faster_now(
    chosen: str, tmp_path: Path
) -> None:
    call = Call(Path("photos"), tmp_path, "vit_nano", "pretrained", None, 0, Stop())
    first = chosen == "bf16-mixed"
    assert call.precision(first) == chosen
    call.keep_precision(chosen)
    assert call.precision(not first) == chosen
    (tmp_path / "precision.txt").write_text("16-true")
    assert call.precision(not first) != chosen, "no name that a file brings is trained with"


def test_a_signal_ends_it_between_two_steps_and_nothing_is_lost(work: Path, tmp_path: Path) -> None:
    seen: list[float] = []

    class Late(Stop):
        @property
        def signal(self) -> int | None:
            seen.append(1)
            return signal.SIGINT if len(seen) > 100 else None

        @signal.setter
        def signal(self, value: int | None) -> None: ...

    stop = Late()
    with pytest.raises(StoppedError, match=r"stopped\. Repeat the command to resume from here"):
        adapt(work / "photos", out=tmp_path / "out", stop=stop, **NANO)
    assert list((tmp_path / "out/features").glob("*/part_*.safetensors"))


BAD = [
    ({"minutes": 0}, "--minutes 0: expected a number above 0"),
    ({"minutes": "60"}, "--minutes '60': expected a number above 0"),
    ({"seed": "a"}, "--seed 'a': expected a whole number from 0"),
    ({"backbone": "vit_nanoo"}, "has no model 'vit_nanoo'. Did you mean vit_nano"),
    ({"weights": "none.safetensors"}, "none.safetensors does not .*--weights of kora adapt"),
    ({"backbone": "vit_tiny_patch16_224"}, "pretrained weights of 'vit_tiny_patch16_224'"),
]


@pytest.mark.parametrize(("options", "expected"), BAD)
def test_what_cannot_work_is_told_before_a_picture_is_opened(
    options: dict[str, Any], expected: str, work: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "look_at", lambda *a, **o: pytest.fail("looked"))
    monkeypatch.setattr("kora.backbone.weights.is_reachable", lambda *a, **o: False)
    with pytest.raises((ValueError, RuntimeError, FileNotFoundError), match=expected):
        adapt(work / "photos", out=tmp_path / "out", **{**NANO, **options})


def test_more_pictures_than_memory_holds_are_refused(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 1000)
    with pytest.raises(ValueError, match=r"features of 60 pictures take 0\.0 GiB of memory"):
        adapt(work / "photos", out=tmp_path / "out", dry_run=True, **NANO)


@pytest.mark.parametrize("what", ["part_0000.safetensors", "search"])
def test_a_full_disk_is_told_in_one_line_and_what_is_there_stays(
    what: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        folder = self.parent.name == "search"
        if folder == (what == "search"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=rf"{what}.* cannot be written: No space left on device"):
        adapt(work / "photos", out=tmp_path / "out", **NANO)
    assert (tmp_path / "out/split_1.csv").is_file()
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_two_at_once_in_one_folder_are_refused(work: Path, tmp_path: Path) -> None:
    lock = module.lock_at(tmp_path / ".lock")
    assert module.acquired(lock, timeout_s=0)
    try:
        with pytest.raises(RuntimeError, match="another kora adapt is at work there"):
            adapt(work / "photos", out=tmp_path, **NANO)
    finally:
        lock.release()


def test_its_help_needs_no_torch() -> None:
    code = "import sys, kora.cli\ntry: kora.cli.main(['adapt', '--help'])\n"
    code += "finally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--minutes M" in done.stdout


def test_it_is_a_function_of_the_package(work: Path, tmp_path: Path) -> None:
    assert package.adapt is adapt
    assert package.adapt(work / "photos", out=tmp_path, dry_run=True, **NANO) is None


def test_the_interval_is_wilsons() -> None:
    # scipy.stats.binomtest(8, 10).proportion_ci(method="wilson") of SciPy 1.15
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-5)
    assert (wilson(0, 5)[0], wilson(5, 5)[1]) == (0, 1)
