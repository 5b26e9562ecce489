"""What waits at the start of a process is where it was when somebody asks for it."""

from __future__ import annotations

import subprocess
import sys

WAITS = ("transformers", "scipy.signal", "torchmetrics.text", "torchmetrics.functional.text.bert")


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_lightning_starts_without_metrics_of_text_and_sound() -> None:
    code = "import sys, kora, lightning.pytorch; print([m for m in {} if m in sys.modules])"
    assert printed(code.format(WAITS)) == "[]"


def test_without_wandb_no_command_imports_it() -> None:
    code = "import sys, kora.training.lightning_cli, kora.tasks, datamodules"
    assert printed(f"{code}; print('wandb' in sys.modules)") == "False"


def test_what_timm_has_of_wandb_is_the_real_thing() -> None:
    code = """
import kora, timm.utils.summary as summary
standing_in = summary.wandb
import wandb
print(standing_in is wandb, standing_in.log is wandb.log, standing_in.run, wandb.sdk.__name__)
"""
    assert printed(code) == "False True None wandb.sdk"


def test_every_name_is_where_it_was_and_the_same_thing() -> None:
    names = """
import pickle, {first} torchmetrics, torchmetrics.functional as F
for package in (torchmetrics, F):
    for name in sorted(package.__all__):
        found = getattr(package, name)
        print(package.__name__, name, found.__module__ if callable(found) else found.__name__)
from torchmetrics import *
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from torchmetrics.image import StructuralSimilarityIndexMeasure as S
import torchmetrics.text, scipy.signal
print(ssim.__module__, S.__module__, torchmetrics.text.BLEUScore.__module__)
print(scipy.signal.windows.hann(3), pickle.loads(pickle.dumps(torchmetrics.BLEUScore())))
print(type(torchmetrics.image).__name__, hasattr(torchmetrics, "nothing"))
"""
    ours, plain = (printed(names.format(first=first)) for first in ("kora,", ""))
    assert len(ours.splitlines()) > 150
    assert ours == plain


def test_after_torchmetrics_nothing_is_left_in_the_way() -> None:
    code = """
import sys, kora, torchmetrics, timm
print([f for f in sys.meta_path if type(f).__module__ == "kora.start_up"])
"""
    assert printed(code) == "[]"
