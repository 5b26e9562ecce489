"""The options of `kora inspect` and `kora cka`, read without torch."""

from __future__ import annotations

import argparse

from kora.console.arguments import not_negative, positive

__all__ = ["ADVISED_IMAGES", "cka_parser", "inspect_parser"]

#: Images from which CKA is advised.
ADVISED_IMAGES = 1000


def inspect_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora inspect",
        description="Numbers and heat maps by block and site. KoRA: what each node contributes to "
        "c_L, the norm of its p, the gradient that reached it in training, the singular values of "
        "P B A or M. LoRA, DoRA: norm and singular values of each update. Fusion: the "
        "attention. Bottleneck, VPT, SSF, BitFit: norms of what they add or change.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="a run's folder")
    parser.add_argument(
        "--images", type=positive, default=256, metavar="N",
        help="number of images of the split, evenly spread (256)",
    )  # fmt: skip
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--out", metavar="DIR", help="where to write (RUN/inspect)")
    parser.add_argument("--batch_size", type=positive, default=32, metavar="N")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--weights", metavar="FILE", help="where the backbone's weights are now")
    return parser


def cka_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora cka",
        description="Centered kernel alignment (linear, unbiased, from minibatches, float64) "
        "between all layers of a run's model, between the model and its frozen backbone, and "
        "between two runs, on the test images of RUN. Writes cka.json, cka.csv and heat maps.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("run2", metavar="RUN2", nargs="?", help="another run, compared with RUN")
    parser.add_argument(
        "--images", type=int, metavar="N",
        help=f"test images, drawn at random; {ADVISED_IMAGES} or more are advised (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--features", choices=("mean", "cls"), default="mean",
        help="for each layer the mean over its patch tokens, or its CLS token (default: mean)",
    )  # fmt: skip
    parser.add_argument(
        "--batch_size", type=int, default=64, metavar="B",
        help="images of a minibatch (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="S",
        help="for the order of the images and the bootstrap (default: 0)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="default: RUN/cka")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--weights", metavar="FILE", help="where the backbone's weights are now")
    return parser
