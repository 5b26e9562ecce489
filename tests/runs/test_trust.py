"""What a file of somebody else may name, and what it may not."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import kora
from kora.adapters import LoRA, Strategy
from kora.runs.trust import build, known_classes, modules_to_trust, only_known_classes, split_trust
from tests.support.adapter_factory import edit_record, kicked, write_folder

REPOSITORY = Path(__file__).parents[2]

#: Each makes a file where it is called, or would read a pickle.
_HOSTILE = (
    "os.system",
    "subprocess.Popen",
    "torch.load",
    "kora.adapters.lora.torch.load",
    "kora.tasks.ClassificationTask.load_from_checkpoint",
    "datamodules.Synthetic.from_datasets",
    "torchmetrics.functional.image.lpips._LPIPS",
    "torch.nn.Linear",
    "builtins.eval",
    "kora.cli.dispatch.main",
    "kora.__main__.main",
    "jsonargparse.set_parsing_settings",
    "tests.runs.test_trust.Mine",
)


class Mine(LoRA):
    """A strategy of a user's own."""


@pytest.mark.parametrize("path", _HOSTILE)
def test_a_class_that_is_not_on_the_list_is_refused_before_it_is_called(path: str) -> None:
    for described in (path, {"class_path": path}, {"class_path": path, "init_args": {"rank": 2}}):
        with pytest.raises(ValueError, match=r"f\.json cannot be used: it names .*only classes of"):
            build(Strategy, described, origin="f.json")


@pytest.mark.parametrize("path", _HOSTILE)
def test_nor_is_it_called_as_an_argument_of_a_class_on_the_list(path: str) -> None:
    for key in ("composer", "readout", "node_form", "feedback", "rank", "sites"):
        for value in (path, {"class_path": path}, [{"class_path": path}]):
            arguments = {"rank": 2, "d_comp": 2, key: value}
            described = {"class_path": "kora.adapters.KoRA", "init_args": arguments}
            takes_a_class = key not in ("rank", "sites") and not isinstance(value, list)
            why = "it names .*only classes of" if takes_a_class else "expect"
            with pytest.raises(ValueError, match=rf"f\.json cannot be used: .*{why}"):
                build(Strategy, described, origin="f.json")


def test_a_class_of_another_kind_is_refused() -> None:
    for path in ("kora.adapters.Sum", "datamodules.Synthetic", "torch.optim.AdamW"):
        with pytest.raises(ValueError, match="subclass of Strategy"):
            build(Strategy, {"class_path": path}, origin="f.json")


def test_an_argument_of_another_type_is_refused() -> None:
    for arguments in ({"rank": "four"}, {"rank": [4]}, {"rank": None}, {"spam": 1}, [4], "4"):
        with pytest.raises(ValueError, match=r"f\.json cannot be used"):
            build(
                Strategy,
                {"class_path": "kora.adapters.LoRA", "init_args": arguments},
                origin="f.json",
            )


def test_a_trusted_module_may_be_named() -> None:
    described = {"class_path": "tests.runs.test_trust.Mine", "init_args": {"rank": 3}}
    made = build(Strategy, described, origin="f.json", trust=["tests.runs.test_trust"])
    assert type(made) is Mine
    assert made.rank == 3


def test_every_class_of_the_configs_is_known() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "configs").rglob("*.yaml")]
    named = set(re.findall(r"class_path: *([\w.]+)", "\n".join(texts)))
    assert len(named) > 20
    assert named <= known_classes()


def test_the_list_holds_classes_alone_and_the_default_of_the_optimiser() -> None:
    other = {path for path in known_classes() if not path.rpartition(".")[2][0].isupper()}
    assert other == {"kora.tasks.base._adamw"}
    assert "kora.adapters.describe" not in known_classes()


def test_the_rule_ends_with_the_command() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=Strategy)
    with only_known_classes(), pytest.raises(Exception, match="not allowed"):
        parser.parse_args(["--it=tests.runs.test_trust.Mine"])
    parser.parse_args(["--it=tests.runs.test_trust.Mine"])


def test_the_modules_to_trust_are_those_of_classes_that_are_not_known() -> None:
    config = {
        "model": {"class_path": "kora.tasks.ClassificationTask", "init_args": {"adapter": {
            "class_path": "mine.Own"}}},
        "trainer": {"callbacks": [{"class_path": "other.module.Watch"}, {"class_path": "mine.B"}]},
    }  # fmt: skip
    assert modules_to_trust(config) == ["mine", "other.module"]


def test_trust_is_an_option_of_the_command_line_alone() -> None:
    assert split_trust(["--a", "1", "--trust", "x.y", "--trust=z"]) == (["--a", "1"], ["x.y", "z"])
    for bad in (["--trust"], ["--trust", "../x"], ["--trust="]):
        with pytest.raises(ValueError, match="expected the name of a module"):
            split_trust(bad)


# -- adapter folders ---------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "adapter", kicked(LoRA(2)))


def _edit(folder: Path, **changes: Any) -> None:
    """Change what a folder says of its strategy."""
    record = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    edit_record(folder, adapter=record["adapter"] | changes)


def test_an_adapter_folder_cannot_load_a_pickle(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (adapter / "PWNED",))

    (adapter / "w.pth").write_bytes(pickle.dumps(Payload()))
    _edit(
        adapter,
        class_path="torchmetrics.functional.image.lpips._LPIPS",
        init_args={"model_path": str(adapter / "w.pth")},
    )
    with pytest.raises(ValueError, match="names torchmetrics"):
        kora.load_adapter(adapter)
    assert not (adapter / "PWNED").exists()


def test_sizes_that_are_not_those_of_the_tensors_take_no_memory(adapter: Path) -> None:
    for number, told in ((10**7, r"weight' has shape \(7, 128\), expected"), (10**18, "overflow")):
        task: Any = {
            "class_path": "kora.tasks.ClassificationTask",
            "init_args": {"num_classes": number},
        }
        edit_record(adapter, task=task)
        with pytest.raises((ValueError, RuntimeError), match=told):
            kora.load_adapter(adapter)


def test_a_strategy_of_ones_own_loads_when_its_module_is_trusted(adapter: Path) -> None:
    _edit(adapter, class_path="tests.runs.test_trust.Mine")
    with pytest.raises(ValueError, match=r"--trust tests\.runs\.test_trust"):
        kora.load_adapter(adapter)
    model = kora.load_adapter(adapter, trust=["tests.runs.test_trust"])
    assert type(model.adapter) is Mine


def test_a_task_or_head_that_is_not_ours_is_refused(adapter: Path) -> None:
    tasks: list[Any] = [
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}},
        {"class_path": "kora.tasks.AdapterTask", "init_args": {}},
        {"class_path": "kora.tasks.DepthTask", "init_args": {"head": {"class_path": "os.system"}}},
        {"class_path": "kora.tasks.ClassificationTask", "init_args": {"num_classes": "x"}},
        {"class_path": "kora.tasks.ClassificationTask", "init_args": []},
        {"class_path": 3, "init_args": {}},
        {"init_args": {}},
        "kora.tasks.ClassificationTask",
    ]
    for task in tasks:
        edit_record(adapter, task=task)
        with pytest.raises((ValueError, RuntimeError), match=r"adapter_config\.json"):
            kora.load_adapter(adapter)
