"""AdapterFusion on the command line: two source runs, their fusion, and what it leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.cli import fit_in, kora, results, tiny_config, write_config
from tests.support.fusion_factory import TABLE, table

pytestmark = pytest.mark.runs

Capture = pytest.CaptureFixture[str]
STYLES = ("paint", "studio")
RUN = Path("runs/tiny/AdapterFusion/seed0/version_0")


def source(style: str) -> str:
    return f"runs/{style}/Bottleneck/seed0/version_0/adapter"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two source runs in two styles, and one that fuses them by fusion.yaml."""
    folder = tmp_path_factory.mktemp("trained")
    for style in STYLES:
        config = with_adapter("Bottleneck", rank=2)
        config["experiment"], config["data"]["init_args"]["style"] = style, style
        fit_in(folder, "--config", write_config(folder / f"{style}.yaml", config))
    sources = [source(style) for style in STYLES]
    fusion = with_adapter("AdapterFusion", pictures=True, sources=sources)
    write_config(folder / "fusion.yaml", fusion)
    return fit_in(folder, "--config", "fusion.yaml", "--trainer.log_every_n_steps", "1")


@pytest.fixture
def fused(trained: Path, here: Path) -> Path:
    """A copy of that folder's files, in `here`."""
    shutil.copytree(trained, here, dirs_exist_ok=True)
    return here / "fusion.yaml"


@pytest.fixture
def unfused(fused: Path) -> Path:
    """The same without the run that fuses them."""
    shutil.rmtree("runs/tiny")
    return fused


def with_adapter(name: str, *, pictures: bool = False, **arguments: Any) -> dict[str, Any]:
    config = tiny_config(pictures=pictures)
    adapter = {"class_path": f"kora.adapters.{name}", "init_args": arguments}
    config["model"]["init_args"]["adapter"] = adapter
    return config


def test_two_sources_are_fused_and_the_run_shows_what_it_attends_to(fused: Path) -> None:
    assert (RUN / "fusion_attention.png").is_file()
    rows = table(RUN)
    assert [(row["block"], row["place"]) for row in rows] == [(str(i), "mlp") for i in range(6)]
    for row in rows:
        shares = [float(row[f"{style}/Bottleneck"]) for style in STYLES]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert min(shares) > 0
    record = results(RUN)
    assert record["parameters"]["trainable"] == 6 * (3 * 128**2 + 2 * 128) + 12 * 129
    logged = (RUN / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "train/penalty" in logged
    kept = load_file(RUN / "adapter/adapter_model.safetensors")
    for number, style in enumerate(STYLES):
        theirs = load_file(f"{source(style)}/adapter_model.safetensors")
        for key, tensor in theirs.items():
            if key.startswith("adapter."):
                place, name = key.removeprefix("adapter.adapters.").split(".", 1)
                mine = kept[f"adapter.places.{place}.adapters.{number}.{name}"]
                assert (mine == tensor).all()  # frozen: as the source run left it


def test_a_test_and_a_validation_of_it_write_the_table_too(fused: Path, capfd: Capture) -> None:
    for number, command in enumerate(("test", "validate"), start=1):
        outcome = kora(
            capfd, command, "--config", RUN / "config.yaml",
            "--ckpt_path", RUN / "checkpoints/best.ckpt",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        assert "fusion_attention.png" in outcome.out
        again = RUN.with_name(f"version_{number}")
        assert (table(again) == table(RUN)) == (command == "test")
        assert [row["place"] for row in table(again)] == ["mlp"] * 6


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([source("paint")], "over a single adapter the softmax is always 1"),
        ([source("paint"), "runs/nothing/adapter"], "runs/nothing/adapter is no adapter folder"),
    ],
)
def test_sources_that_are_not_there_are_one_clear_error(
    sources: list[str], message: str, unfused: Path, capfd: Capture
) -> None:
    config = write_config(unfused, with_adapter("AdapterFusion", sources=sources))
    outcome = kora(capfd, "fit", "--config", config)
    assert outcome.code in (1, 2)
    assert message in outcome.err
    assert not RUN.exists()


def test_a_damaged_source_is_a_failure_that_names_the_file(unfused: Path, capfd: Capture) -> None:
    path = Path(source("studio")) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:300])
    outcome = kora(capfd, "fit", "--config", unfused)
    assert outcome.code in (1, 2)
    assert str(path) in outcome.err
    assert not RUN.exists()


def test_a_checkpoint_is_tested_with_its_sources_moved(fused: Path, capfd: Capture) -> None:
    for style in STYLES:
        shutil.move(source(style), style)
    outcome = kora(
        capfd, "test", "--config", RUN / "config.yaml",
        "--ckpt_path", RUN / "checkpoints/best.ckpt",
        "--model.adapter.init_args.sources", "[paint, studio]",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert results(RUN.with_name("version_1"))["metrics"]["test/accuracy"] == pytest.approx(
        results(RUN)["metrics"]["test/accuracy"]
    )


@pytest.mark.parametrize("command", ["test", "predict"])
def test_a_checkpoint_needs_no_source_folders(command: str, fused: Path, capfd: Capture) -> None:
    for style in STYLES:
        shutil.rmtree(f"runs/{style}")
    checkpoint = ("--ckpt_path", RUN / "checkpoints/best.ckpt")
    with pytest.warns(UserWarning, match=f"no adapter at .*{source('studio')}; those"):
        outcome = kora(capfd, command, "--config", RUN / "config.yaml", *checkpoint)
    assert outcome.code == 0, outcome.err
    if command == "test":
        again = RUN.with_name("version_1")
        assert table(again) == table(RUN)
        assert results(again)["metrics"]["test/accuracy"] == pytest.approx(
            results(RUN)["metrics"]["test/accuracy"]
        )


def test_training_goes_on_from_its_folder_without_its_sources(fused: Path, capfd: Capture) -> None:
    for style in STYLES:
        shutil.rmtree(f"runs/{style}")
    start = ("--model.adapter_from", RUN / "adapter")
    with pytest.warns(UserWarning, match=f"those in {RUN / 'adapter'}"):
        outcome = kora(capfd, "fit", "--config", fused, *start)
    assert outcome.code == 0, outcome.err
    assert (RUN.with_name("version_1") / TABLE).is_file()
    shutil.rmtree(RUN / "adapter")
    outcome = kora(capfd, "fit", "--config", fused)
    assert outcome.code == 1
    assert f"{source('paint')}, {source('studio')} are no adapter folders" in outcome.err


def write_configs(folder: Path) -> Path:
    """fusion.yaml names the configs of two source runs."""
    for style in STYLES:
        config = with_adapter("Bottleneck", rank=2)
        config["experiment"], config["data"]["init_args"]["style"] = style, style
        write_config(folder / f"{style}.yaml", config)
    fusion = with_adapter("AdapterFusion", sources=[f"{style}.yaml" for style in STYLES])
    # Random weights would be others for each seed.
    fusion["model"]["init_args"]["backbone"] = {"name": "vit_nano", "image_size": 32}
    return write_config(folder / "fusion.yaml", fusion)


@pytest.fixture
def from_configs(here: Path) -> Path:
    """These configs; nothing has been trained."""
    return write_configs(here)


@pytest.fixture(scope="module")
def trained_from_configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with these configs and their runs, and what that printed."""
    folder = tmp_path_factory.mktemp("trained_from_configs")
    return fit_in(folder, "--config", write_configs(folder))


@pytest.fixture
def fused_from_configs(trained_from_configs: Path, here: Path) -> Path:
    """A copy of that folder's files, in `here`."""
    shutil.copytree(trained_from_configs, here, dirs_exist_ok=True)
    return here / "fusion.yaml"


def test_sources_that_are_configs_are_trained_first_once_for_each_seed(
    fused_from_configs: Path, capfd: Capture
) -> None:
    from_configs = fused_from_configs
    assert Path("out.txt").read_text().count("with Bottleneck, trained first") == 2
    assert [row["studio/Bottleneck"] for row in table(RUN)]

    again = kora(capfd, "fit", "--config", from_configs)
    assert again.out.count("used again") == 2
    assert results(RUN.with_name("version_1"))["metrics"] == results(RUN)["metrics"]
    folders = f"[{source('paint')}, {source('studio')}]"
    named = ("--model.adapter.sources", folders, "--experiment", "folders")
    assert kora(capfd, "fit", "--config", from_configs, *named).code == 0
    same = results(Path("runs/folders/AdapterFusion/seed0/version_0"))
    assert same["metrics"] == results(RUN)["metrics"]

    other = kora(capfd, "fit", "--config", from_configs, "--seed_everything", "1")
    assert other.out.count("trained first") == 2
    assert Path(source("paint").replace("seed0", "seed1")).is_dir()
    compared = kora(capfd, "compare", "runs/tiny")
    assert compared.code == 0, compared.err  # the seeds are of one method, wherever sources lie
    assert "AdapterFusion" in compared.out


def test_a_checkpoint_of_it_is_tested_with_its_source_runs_and_without(
    fused_from_configs: Path, capfd: Capture
) -> None:
    checkpoint = ("--ckpt_path", RUN / "checkpoints/best.ckpt")
    assert kora(capfd, "test", "--config", RUN / "config.yaml", *checkpoint).code == 0
    for style in STYLES:
        shutil.rmtree(f"runs/{style}")
        Path(f"{style}.yaml").unlink()
    with pytest.warns(UserWarning, match=r"no adapter at paint\.yaml, studio\.yaml"):
        assert kora(capfd, "test", "--config", RUN / "config.yaml", *checkpoint).code == 0
    for version in ("version_1", "version_2"):
        tested = results(RUN.with_name(version))["metrics"]["test/accuracy"]
        assert tested == results(RUN)["metrics"]["test/accuracy"]


def test_it_is_counted_before_its_sources_are_trained(from_configs: Path, capfd: Capture) -> None:
    counted = kora(capfd, "params", "--config", from_configs)
    assert counted.code == 0, counted.err
    assert f"{6 * (3 * 128**2 + 2 * 128) + 12 * 129:,}" in counted.out
    low = with_adapter("LowRankFusion", sources=[f"{style}.yaml" for style in STYLES])
    write_config(from_configs.with_name("low.yaml"), low)
    matched = kora(capfd, "params", "--config", "tiny.yaml", "--match", "low.yaml")
    assert matched.code == 0, matched.err
    assert "rank" in next(line for line in matched.out.splitlines() if "LowRankFusion" in line)
    assert not Path("runs").exists()


def test_a_config_that_is_not_there_is_one_clear_error(from_configs: Path, capfd: Capture) -> None:
    Path("studio.yaml").unlink()
    for command in ("fit", "params"):
        outcome = kora(capfd, command, "--config", from_configs)
        assert outcome.code == 1
        (line,) = [line for line in outcome.err.splitlines() if line.startswith("kora: error")]
        assert "Source config studio.yaml does not exist" in line
