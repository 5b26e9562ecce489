"""`kora adapt FOLDER`: the options of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kora.adaptation import BACKBONE
from kora.adaptation.call import commands_of, require_place
from kora.grid.options import add_lightning_options, fill_launcher_options
from kora.runs.durable import expand
from kora.runs.processes import Stop

__all__ = ["adapt_command", "adapt_parser"]


def adapt_command(args: Sequence[str]) -> None:
    """Run the command, and print its result.

    Raises:
        As `kora.adaptation.adapt.adapt`, or as `adapt_on_lightning`.
    """
    own = adapt_parser().parse_args(args)
    fill_launcher_options(own)
    from kora.console.say import say

    if own.launcher == "lightning":
        from kora.adaptation.elsewhere import adapt_on_lightning

        with Stop.on_signals() as stop:
            adapt_on_lightning(own, stop=stop)
        if stop.signal is not None:
            sys.exit(stop.exit_code)
        return
    require_place(expand(own.folder))  # before torch is imported
    from kora.adaptation.adapt import StoppedError, adapt

    with Stop.on_signals() as stop:
        try:
            result = adapt(
                own.folder, backbone=own.backbone, weights=own.weights, minutes=own.minutes,
                out=own.out, seed=own.seed, dry_run=own.dry_run, stop=stop,
            )  # fmt: skip
        except StoppedError as stopped:
            say(str(stopped))
            sys.exit(stop.exit_code)
    if result is None:
        return
    say("")
    say(result.sentence)
    say(f"page:     {result.page}")
    for what, command in commands_of(result.run):
        say(f"{what + ':':<9} {command}")


def adapt_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora adapt",
        description="From a folder of pictures to the model that is best by validation, with its "
        "score on test pictures. Repeat the command after a stop: it uses what is finished.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", metavar="FOLDER",
        help="FOLDER/CLASS/*, FOLDER/train/CLASS/* with test/CLASS/*, or a CSV of path and label; "
        "for a class of each pixel, images and masks of the same names; for boxes, COCO json, "
        "Pascal VOC XML or YOLO txt",
    )  # fmt: skip
    parser.add_argument(
        "--backbone", default=BACKBONE, metavar="NAME",
        help="a vision transformer of timm (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="FILE", help="its weights, .safetensors (default: those of timm)"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M",
        help="time for everything; what strategies on cached features do not need goes to those "
        "that train through the backbone (default: the former, and the best of the latter if all "
        "ends within 20 minutes)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the results (default: runs/adapt_FOLDER)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the split, unless an earlier call made it, and of the fits (default: 0)",
    )
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true",
        help="look at the pictures, and print what would be tried and how long it takes",
    )  # fmt: skip
    parser.add_argument(
        "--launcher", choices=("local", "lightning"), default="local",
        help="lightning: as a job of Lightning AI, with the FOLDER of that name in the Studio",
    )  # fmt: skip
    parser.add_argument(
        "--on_stop", choices=("leave", "stop"),
        help="what Ctrl-C does with the job on lightning (default: leave)",
    )  # fmt: skip
    add_lightning_options(parser)
    return parser
