"""What the parser remembers is what it would have found again."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from kora.training.lightning_cli import parse
from kora.training.parser import of_the_parser, remembering
from tests.support.cli import REPOSITORY

CONFIGS = REPOSITORY / "configs"
#: Classes in classes: nodes with a matrix and an injection, sources of a fusion, heads and losses.
COMMANDS = {
    "nodes": ("quickstart", "adapters/kora_over_lora", "--model.adapter.node_form.inject.rank=3"),
    "fusion": ("quickstart", "adapters/adapter_fusion"),
    "layers": ("quickstart", "adapters/lora", "heads/multi_layer", "--model.head_lr=0.5"),
    "depth": ("quickstart_depth", "adapters/kora_side", "--model.optimizer.lr=0.01"),
}


def arguments(*words: str) -> list[str]:
    named = [w if w.startswith("--") else f"--config={CONFIGS / w}.yaml" for w in words]
    return ["fit", *named]


@pytest.fixture(autouse=True)
def _as_outside_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kora.training.lightning_cli.of_the_parser", of_the_parser)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_with_and_without_it_a_config_resolves_to_the_same(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = parse(arguments(*words)).resolved()
    monkeypatch.setattr("kora.training.lightning_cli.remembering", nullcontext)
    assert parse(arguments(*words)).resolved() == found


def test_runs_that_share_it_keep_their_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = str(CONFIGS / "quickstart.yaml")
    with remembering():
        ranks = [
            parse(["fit", "--config", config, f"--model.adapter.rank={rank}"])
            .resolved()["model"]["init_args"]["adapter"]["init_args"]["rank"]
            for rank in (3, 5, 3)
        ]  # fmt: skip
    assert ranks == [3, 5, 3]


def test_it_is_asked_for_less_than_half_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    from jsonargparse import ArgumentParser

    monkeypatch.chdir(REPOSITORY)
    asked: list[str] = []
    original = ArgumentParser.parse_object

    def counted(parser: ArgumentParser, *args: object, **options: object) -> object:
        asked.append("")
        return original(parser, *args, **options)

    monkeypatch.setattr(ArgumentParser, "parse_object", counted)
    parse(arguments(*COMMANDS["nodes"]))
    remembered = len(asked)
    monkeypatch.setattr("kora.training.lightning_cli.remembering", nullcontext)
    parse(arguments(*COMMANDS["nodes"]))
    assert remembered < (len(asked) - remembered) / 2


def test_a_mistake_is_told_each_time(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with remembering():
        for _ in range(2):
            with pytest.raises(SystemExit):
                parse(arguments("quickstart", "--model.adapter.ranks=3"))
            assert "did you mean" in capfd.readouterr().err.lower()


def test_it_builds_the_parser_of_a_command_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with remembering():
        first, second = (parse(arguments("quickstart")) for _ in range(2))
    assert second.parser is first.parser
    assert parse(arguments("quickstart")).parser is not first.parser
    assert second.parser_of("fit") is first.parser_of("fit")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), 224),
        (("--model.backbone.image_size=84",), 84),
        (("--model.backbone.image_size=null",), 518),  # that of DINOv2's weights
        (("--data.image_size=64",), 64),
    ],
)
def test_images_have_the_size_of_the_backbone_unless_they_say_so(
    words: tuple[str, ...], expected: int
) -> None:
    options = parse(["fit", "--config", "configs/image_folder.yaml", *words]).options
    assert options.data.init_args.image_size == expected
