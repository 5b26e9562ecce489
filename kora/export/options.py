"""The options of `kora export`, `kora predict` and `kora push`, read without torch."""

from __future__ import annotations

import argparse

from kora.console.arguments import not_negative, positive

__all__ = ["TOLERANCES", "export_parser", "predict_parser", "push_parser"]

#: Largest difference that is accepted, as a share of the largest output (at least of 1).
TOLERANCES = {"peft": 1e-5, "timm": 1e-5, "onnx": 1e-4}


def export_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora export",
        description="Write a finished run for other libraries. The export's outputs are compared "
        "with those of the run's own model on a batch of probe images, and a larger difference "
        "than the tolerance is refused.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", nargs="+",
        help="a run's folder, or the folder adapter in it; several runs of one backbone that leave "
        "it as it is (probes, KoRA-side) become one graph: --format onnx --out FOLDER",
    )  # fmt: skip
    parser.add_argument(
        "--format", required=True, choices=tuple(TOLERANCES),
        help="peft: adapter and head for Hugging Face's peft (LoRA, DoRA). timm: one state dict "
        "for timm's plain model (LoRA, DoRA, SSF, BitFit, FullFineTune, LinearProbe). onnx: a "
        "graph (needs pip install 'kora-vit[onnx]')",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="default: RUN/export/FORMAT")
    parser.add_argument("--weights", metavar="FILE", help="where the backbone's weights are now")
    parser.add_argument(
        "--tolerance", type=float, metavar="SHARE",
        help="largest difference accepted, as a share of the largest output (at least of 1); "
        "default: " + ", ".join(f"{value:g} for {name}" for name, value in TOLERANCES.items()),
    )  # fmt: skip
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora predict",
        description="Predictions of a finished run for a folder of images, at any depth there. "
        "Classes: predictions.csv with file, class_name, probability and error. Depth and "
        "segmentation: also a map or a mask for each image, at its own size. Detection: also "
        "predictions.json and images.json, as COCO's tools read them, and the first 100 images "
        "with the boxes whose score is at least 0.3. Images that cannot be "
        "read are named, counted, and have a row with the error. Rows are written as they come, to "
        "predictions.csv.part, which is renamed at the end: if the command is stopped or killed, "
        "the finished rows are there. Without --images, kora predict is a command on a config: "
        "kora predict --config RUN/config.yaml --ckpt_path FILE",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", nargs="+",
        help="a run's folder, or the folder adapter in it; several runs of one backbone that leave "
        "it as it is (probes, KoRA-side) share one pass, and write into a folder each",
    )  # fmt: skip
    parser.add_argument(
        "--images", required=True, metavar="PATH", help="a folder of images, or one"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where to write; default: predictions")
    parser.add_argument(
        "--depth_format", choices=("png", "npy"), default="png",
        help="png: 16 bits, millimetres, up to 65.535 m. npy: float32, metres",
    )  # fmt: skip
    parser.add_argument(
        "--top_k", type=positive, default=1, metavar="K",
        help="classes named for each image, the most probable first",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=positive, default=64, metavar="N")
    parser.add_argument(
        "--num_workers", type=not_negative, default=2, metavar="N", help="loader processes"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--weights", metavar="FILE", help="where the backbone's weights are now")
    return parser


def push_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora push",
        description="Put the adapter folder of a run on the Hugging Face hub: JSON, safetensors "
        "and a model card. The token is that of HF_TOKEN, or of `hf auth login`.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or the folder adapter in it")
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="only you may read it")
    parser.add_argument("--license", metavar="NAME", help="of the adapter, such as apache-2.0")
    return parser
