"""Bad input gives one line that names the key or file and the remedy; nothing is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kora.cli import dispatch as cli
from tests.support.cli import Outcome, kora, tiny_config, write_config
from tests.support.data_factory import write_class_folders, write_tiny_imagenet_zip, write_zip

Capture = pytest.CaptureFixture[str]

EVA = ["--model.backbone.name", "eva02_tiny_patch14_224", "--model.backbone.image_size", "28"]
EARLY = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor"]
SAVES = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_weights_only"]
SPARSE = ["--model.optimizer", "SparseAdam", "--model.optimizer.lr"]
NODES = ["--model.adapter", "KoRA", "--model.adapter.node_form", "PaperForm"]
USAGE = [
    (["--model.adapter", "Lora"], ["adapter", "Did you mean 'LoRA'?"]),
    (["--model.adapter.rnk", "3"], ["'rnk'", "Did you mean 'rank'?"]),
    (["--model.adapter.rank", "0"], ["rank=0", "LinearProbe"]),
    (["--model.adapter.rank", "1000"], ["rank=1000", "1 to 128"]),
    (["--model.adapter.dropout", "1"], ["dropout=1", "[0, 1)"]),
    (["--model.adapter.sites", "[qvk]"], ["'qvk'", "Did you mean 'qkv'?"]),
    (["--model.adapter.sites", "[]"], ["sites is empty"]),
    (["--model.adapter.sites", "[head]"], ["'head'", "keep_classifier"]),
    (["--model.adapter.blocks", "[6]"], ["blocks=[6]", "0 to 5"]),
    (["--model.adapter", "KoRA", "--model.adapter.d_comp", "0"], ["d_comp=0"]),
    (["--model.adapter", "KoRA", "--model.adapter.pool", "max"], ["'pool'", "node_form.pool now"]),
    (
        [*NODES, "--model.adapter.node_form.pool", "max"],
        ["pool", "max"],
    ),
    (["--model.backbone.name", "vit_nanno"], ["'vit_nanno'", "Did you mean vit_nano"]),
    (["--model.backbone.name", "swin_tiny_patch4_window7_224"], ["VisionTransformer family"]),
    (["--model.backbone.image_size", "30"], ["image_size"]),
    ([*EVA, "--model.adapter.allow_dead_sites", "true"], ["'qkv'", "sites=['proj'"]),
    ([*EVA, "--model.adapter", "VPT"], ["VPT", "knows the place of each", "LoRA"]),
    (["--model.num_classes", "1"], ["num_classes=1", "two classes"]),
    (["--model.warmup_fraction", "2"], ["warmup_fraction=2"]),
    (["--model.head_lr", "high"], ["head_lr", "high"]),
    (["--model.head_lr=-1"], ["head_lr=-1"]),
    (["--model.optimizer", "SGD", "--model.optimizer.lr=-1"], ["model.optimizer", "-1"]),
    (["--model.optimizer.lr", "1e-3"], ["'lr'", "class first: --model.optimizer AdamW --model"]),
    (["--model.optimizer", "AdamWW"], ["optimizer", "Did you mean 'AdamW'?"]),
    (["--model.adapter_trainable", "false"], ["adapter_trainable", "source"]),
    (["--model.adapter", "KoRA", "--model.adapter.alpha", "0"], ["alpha=0"]),
    (["--experiment", "../../escaped"], ["experiment='../../escaped'", "--runs_dir"]),
    (["--experiment", "/tmp/escaped"], ["experiment='/tmp/escaped'", "below runs_dir"]),
    (["--experiment", "a\0b"], [r"experiment='a\x00b'", "expected a name"]),
    (["--data", "datamodules.ImageDataModule"], ["ImageDataModule"]),
    (["--experiment", "a::b"], ["experiment='a::b'", "a folder name cannot contain ::"]),
    (["--runs_dir=~/runs"], ["runs_dir='~/runs'", "Write its whole path"]),
    (["--runs_dir", "file:///tmp/x"], ["runs_dir='file:///tmp/x'", "folder of this machine"]),
    (["--experiment", "\udce9t\udce9"], [r"experiment='\udce9t\udce9'", "expected a name"]),
    (["--source", "away.yaml"], ["experiment='a/../../b'", "below runs_dir"]),
    (["--config", "latin.yaml"], ["latin.yaml: is not UTF-8, from byte 19 on"]),
    (["--source", "typo.yaml"], ["typo.yaml: ", ".max_epochz'", "mean 'trainer.max_epochs'?"]),
    (["--source", "latin.yaml"], ["latin.yaml: is not UTF-8, from byte 19 on"]),
    (["--source", "nul.yaml"], ["nul.yaml: cannot be read as YAML"]),
    (["--seed_everything", "false"], ["seed_everything=False"]),
    (["--seed_everything=-1"], ["seed_everything=-1"]),
    (["--trainer.accelerator", "gpuu"], ["gpuu"]),
    (["--source", "tiny.yaml", "--model.adapter_from", "x"], ["both set"]),
    (["--data", "Synthetix"], ["data", "Did you mean 'Synthetic'?"]),
    (["--data.style", "oil"], ["oil"]),
    (["--wandb.finish_s", "0"], ["wandb.finish_s is 0", "above 0"]),
    (["--data.batch_size", "0"], ["data.batch_size"]),
    (["--data.val_fraction", "1.5", "--data.val_images", "null"], ["val_fraction"]),
    (["--data.subset.per_class", "500"], ["class", "500"]),
    (["--trainer.max_epochs", "-1"], ["no end", "trainer.max_epochs"]),
    (["--trainer.max_epochs", "0"], ["trainer.max_epochs=0", "above 0"]),
    (["--trainer.limit_train_batches", "0"], ["trainer.limit_train_batches=0", "above 0"]),
    (["--trainer.limit_test_batches", "0"], ["trainer.limit_test_batches=0", "--leave_out_test"]),
    (["--trainer.accumulate_grad_batches", "0"], ["trainer.accumulate_grad_batches=0"]),
    (["--trainer.check_val_every_n_epoch", "0"], ["trainer.check_val_every_n_epoch=0"]),
    (["--trainer.val_check_interval", "100"], ["trainer: `val_check_interval` (100)", "(2)"]),
    (["--trainer.devices", "[7]"], ["trainer: `devices`", "int > 0", "Check trainer.acc"]),
    ([*EARLY, "val/nowhere"], ["trainer: Early stopping", "`val/nowhere`", "`val/loss`"]),
    ([*SAVES, "true"], ["trainer: Found more than one", "`ModelCheckpoint`", "callbacks"]),
    ([*SPARSE, "0.1"], ["model.optimizer: SparseAdam does not support dense", "another"]),
    (["--trainer.max_epoch", "1"], ["max_epoch", "Did you mean 'trainer.max_epochs'?"]),
    (["--trainr.max_epochs", "1"], ["trainr", "Did you mean 'trainer.max_epochs'?"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    (["--model.adapter_from", "nowhere"], ["nowhere", "no adapter folder"]),
    (["--source", "nowhere.yaml"], ["source", "nowhere.yaml"]),
    (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
]


@pytest.mark.parametrize(("args", "fragments"), USAGE, ids=lambda value: " ".join(value))
def test_a_mistake_is_told_in_one_line(
    here: Path, capfd: Capture, args: list[str], fragments: list[str]
) -> None:
    write_config(here / "away.yaml", tiny_config(experiment="a/../../b"))
    (here / "typo.yaml").write_text("trainer: {max_epochz: 3}")
    (here / "latin.yaml").write_bytes(b"experiment: tiny # \xe9")
    (here / "nul.yaml").write_bytes(bytes(9))
    outcome = kora(capfd, "fit", "--config", "tiny.yaml", *args)
    lines = [line for line in outcome.err.splitlines() if line.startswith("kora: error:")]
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert all(fragment in lines[0] for fragment in fragments), lines[0]
    # Files that are not there are failures of the world, everything else is a usage error.
    assert outcome.code == (1 if {"nowhere", "nowhere.ckpt", "nowhere.yaml"} & set(args[1:])
                            and args[0] != "--config" else 2)  # fmt: skip
    assert not list(here.rglob("results.json"))


def test_an_adapter_folder_that_does_not_fit_is_told_in_one_line(
    here: Path, capfd: Capture
) -> None:
    assert kora(capfd, "fit", "--config", "tiny.yaml").code == 0
    (good,) = here.rglob("adapter_config.json")
    record = json.loads(good.read_text())

    def told(*options: str, **contents: bytes) -> Outcome:
        folder = shutil.copytree(good.parent, here / "changed", dirs_exist_ok=True)
        for file in folder.iterdir():
            file.write_bytes(contents.get(file.stem, file.read_bytes()))
        args = ("--model.adapter_from", "changed", "--trainer.fast_dev_run", "true", *options)
        outcome = kora(capfd, "fit", "--config", "tiny.yaml", *args)
        assert outcome.err.count("kora: error:") == 1, outcome.err
        assert "Traceback" not in outcome.err
        assert "changed" in outcome.err
        return outcome

    def config(**changed: object) -> bytes:
        return json.dumps({**record, **changed, "record_sha256": None}).encode()

    for outcome, fragments in (
        (told("--model.adapter", "DoRA"), ["kora.adapters.LoRA", "kora.adapters.DoRA"]),
        (told("--model.adapter.rank", "4"), ["rank=2 there, 4 here", "Make model.adapter equal"]),
        (told("--seed_everything", "5"), ["'vit_nano' at 32 pixels", "Set model.backbone"]),
        (told("--model.backbone.image_size", "64"), ["at 32 pixels", "at 64 pixels"]),
        (told(adapter_config=config(format=2)), ["adapter_config.json", "format 2", "format 1"]),
    ):
        assert outcome.code == 2
        assert all(fragment in outcome.err for fragment in fragments), outcome.err
    # What is damaged is a failure of the world.
    weights = (good.parent / "adapter_model.safetensors").read_bytes()
    for outcome, fragments in (
        (told(adapter_config=b"rank: 2"), ["adapter_config.json is damaged", "again"]),
        (told(adapter_config=config(backbone=[])), ["adapter_config.json is damaged", "again"]),
        (told(adapter_model=weights[:-9]), ["adapter_model.safetensors", "cannot be read"]),
    ):
        assert outcome.code == 1
        assert all(fragment in outcome.err for fragment in fragments), outcome.err


def test_a_key_in_a_file_is_named_too(here: Path, capfd: Capture) -> None:
    (here / "more.yaml").write_text("trainer: {max_epochz: 3}\n")
    outcome = kora(capfd, "fit", "--config", "tiny.yaml", "--config", "more.yaml")
    assert outcome.code == 2
    assert "Did you mean 'trainer.max_epochs'?" in outcome.err.splitlines()[0]


def test_broken_yaml_says_where(here: Path, capfd: Capture) -> None:
    (here / "broken.yaml").write_text("trainer: [\n")
    outcome = kora(capfd, "fit", "--config", "broken.yaml")
    assert outcome.code == 2
    assert "line 2" in outcome.err


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_evaluating_an_untrained_head_is_refused(here: Path, capfd: Capture, command: str) -> None:
    outcome = kora(capfd, command, "--config", "tiny.yaml")
    assert outcome.code == 2
    assert "--ckpt_path" in outcome.err


def tiny_imagenet(here: Path, archive: Path, **options: object) -> Path:
    config = tiny_config()
    config["data"] = {
        "class_path": "datamodules.TinyImageNet",
        "init_args": {
            "root": "data", "archive": str(archive), "classes": "0:4", "val_images": 4,
            "batch_size": 12, **options,
        },
    }  # fmt: skip
    return write_config(here / "images.yaml", config)


def test_a_truncated_archive_is_named_and_leaves_no_folder(here: Path, capfd: Capture) -> None:
    archive = write_tiny_imagenet_zip(here / "t.zip")
    archive.write_bytes(archive.read_bytes()[:-2000])
    outcome = kora(capfd, "fit", "--config", tiny_imagenet(here, archive))
    assert outcome.code == 1
    assert "t.zip" in outcome.err
    assert not (here / "data/tiny-imagenet-200").exists()


def test_a_member_that_leaves_the_folder_is_refused(here: Path, capfd: Capture) -> None:
    archive = write_zip(here / "t.zip", {"../evil.txt": b"x", "tiny-imagenet-200/wnids.txt": b"n1"})
    outcome = kora(capfd, "fit", "--config", tiny_imagenet(here, archive))
    assert outcome.code == 1
    assert "../evil.txt" in outcome.err
    assert not (here / "evil.txt").exists()
    assert not (here / "data/tiny-imagenet-200").exists()


def test_an_unreadable_image_is_named(here: Path, capfd: Capture) -> None:
    root = write_class_folders(here / "photos", sizes=((32, 32),))
    victim = sorted((root / "test").rglob("*.*"))[0]
    victim.write_bytes(b"no image")
    config = tiny_config()
    config["data"] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"root": "photos", "image_size": 32, "num_workers": 0, "val_images": 3},
    }
    write_config(here / "photos.yaml", config)
    outcome = kora(capfd, "fit", "--config", "photos.yaml")
    assert outcome.code == 1
    assert victim.name in outcome.err
    assert "Traceback" not in outcome.err


def test_an_unset_variable_in_a_path_is_named(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KORA_NOWHERE", raising=False)
    outcome = kora(
        capfd, "fit", "--config", "tiny.yaml", "--model.backbone.weights", "$KORA_NOWHERE/w.st"
    )
    assert outcome.code == 2
    assert "KORA_NOWHERE" in outcome.err


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK='x', expected a whole number. Unset it"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"}, "`--ntasks-per-node=2` instead"),
    ],
)
def test_an_environment_that_no_run_can_start_in_is_told(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str],
    words: str,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outcome = kora(capfd, "fit", "--config", "tiny.yaml")
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert words in line


def test_no_network_is_said_at_once_and_leaves_nothing(here: Path, capfd: Capture) -> None:
    config = tiny_config()
    config["data"] = {
        "class_path": "datamodules.CIFAR",
        "init_args": {"variant": 10, "root": "data"},
    }
    write_config(here / "cifar.yaml", config)
    outcome = kora(capfd, "data", "prepare", "--config", "cifar.yaml")
    if outcome.code == 0:
        pytest.skip("this machine reaches the data set's server")
    assert outcome.code == 1
    assert "cifar-10-python.tar.gz" in outcome.err
    assert "c58f30108f718f92721af3b95e74349a" in outcome.err
    assert not (here / "data/cifar-10-batches-py").exists()


def test_a_folder_that_is_not_there_is_named_and_not_made(here: Path, capfd: Capture) -> None:
    config = tiny_config()
    config["data"] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"root": "no/photos", "image_size": 32},
    }
    write_config(here / "photos.yaml", config)
    outcome = kora(capfd, "data", "describe", "--config", "photos.yaml")
    assert outcome.code == 1
    assert "data.root" in outcome.err
    assert "no/photos" in outcome.err
    assert not (here / "no").exists()


@pytest.mark.parametrize("module", ["torch.storage", "kora.tasks.load"])
@pytest.mark.parametrize(
    "error",
    ["MemoryError()", 'RuntimeError("DefaultCPUAllocator: can\'t allocate memory: 9 bytes")'],
)
def test_too_little_memory_is_one_line_wherever_it_is_met(
    module: str, error: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(args: object) -> None:
        exec(f"raise {error}", {"__name__": module})

    monkeypatch.setitem(cli._COMMANDS, "list", command)
    outcome = kora(capfd, "list")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "There is too little memory (" in outcome.err
