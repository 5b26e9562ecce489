"""kora adapt --launcher lightning: the command as a job, and its results here."""

from __future__ import annotations

from pathlib import Path

import pytest

from kora.adaptation import elsewhere
from kora.runs.config_files import configs_folder
from tests.support.cli import kora
from tests.support.lightning_ai import OWNER, STUDIO, TEAMSPACE, LightningAI, lightning_ai

__all__ = ["lightning_ai"]

Capture = pytest.CaptureFixture[str]
OPTIONS = ("--launcher", "lightning", "--studio", STUDIO, "--teamspace", f"{OWNER}/{TEAMSPACE}")


def test_the_call_is_that_of_kora_adapt_in_the_studio(
    here: Path, capfd: Capture, lightning_ai: LightningAI
) -> None:
    options = (*OPTIONS, "--minutes", "60", "--studio_folder", "work", "--dry_run")
    done = kora(capfd, "adapt", "photos", *options)
    assert done.code == 0, done.err
    assert "Job.run(name='kora-adapt-photos-job-" in done.out
    assert "command='cd work && kora adapt photos --backbone=" in done.out
    assert "--minutes=60.0 --out=runs/adapt_photos --seed=0'" in done.out
    done = kora(capfd, "adapt", str(configs_folder().parent / "photos"), *options)
    assert f"kora adapt {configs_folder().parent}/photos --backbone=" in done.out
    assert not lightning_ai.jobs
    done = kora(capfd, "adapt", ".", *options)
    assert f" --out=runs/adapt_{here.name} " in done.out, "the Studio has another name for it"
    refused = kora(capfd, "adapt", "photos", *options, "--out", str(here / "out"))
    assert refused.code == 2
    assert f"--out is {here / 'out'}. What a job writes comes back from below" in refused.err
    refused = kora(capfd, "adapt", "photos", "--studio", STUDIO)
    assert refused.code == 2
    assert "--studio has no effect without --launcher lightning" in refused.err


def test_the_results_of_a_table_are_looked_for_where_kora_adapt_writes_them(
    here: Path, capfd: Capture, lightning_ai: LightningAI
) -> None:
    done = kora(capfd, "adapt", "photos.csv", *OPTIONS, "--dry_run")
    assert "Job.run(name='kora-adapt-photos-job-" in done.out


def test_the_results_come_back_once_and_a_failure_is_told(
    here: Path, capfd: Capture, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def does(command: str) -> None:  # in place of kora adapt, which takes minutes
        monkeypatch.setattr(elsewhere._Adapts, "_words", lambda self, job: ["bash", "-c", command])

    does("echo 'kora: error: photos: no such folder.'; exit 2")
    done = kora(capfd, "adapt", "photos", *OPTIONS)
    assert done.code == 1
    assert "kora: error: photos: no such folder." in done.err
    does(
        "mkdir -p runs/adapt_photos && touch runs/adapt_photos/index.html && "
        "echo 'kora: It tells 3 classes apart.' && echo 'kora: page:     there'"
    )
    done = kora(capfd, "adapt", "photos", *OPTIONS)
    assert done.code == 0, done.err
    assert (
        "kora: It tells 3 classes apart.\nkora: page:     runs/adapt_photos/index.html" in done.out
    )
    assert Path("runs/adapt_photos/index.html").is_file()
    again = kora(capfd, "adapt", "photos", *OPTIONS)
    assert again.code == 2
    assert "runs/adapt_photos is here already" in again.err
    assert len(lightning_ai.jobs) == 2


def test_results_that_appear_here_while_the_job_runs_are_kept(
    here: Path, capfd: Capture, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("runs/adapt_photos")
    command = (
        f"mkdir -p {folder} {here / folder} && touch {folder}/index.html {here / folder}/mine && "
        "echo 'kora: It tells 3 classes apart.' && echo 'kora: page:     there'"
    )
    monkeypatch.setattr(elsewhere._Adapts, "_words", lambda self, job: ["bash", "-c", command])
    done = kora(capfd, "adapt", "photos", *OPTIONS)
    assert done.code == 1
    assert "runs/adapt_photos appeared here while the job ran. Move it away" in done.err
    assert [file.name for file in folder.iterdir()] == ["mine"]
    folder.rename("mine")
    lightning_ai.loses_logs = True
    done = kora(capfd, "adapt", "photos", *OPTIONS)
    assert done.code == 0, done.err
    assert (folder / "index.html").is_file()
    assert len(lightning_ai.jobs) == 1
