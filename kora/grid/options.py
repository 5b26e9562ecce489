"""Options that `kora grid` and `kora tune` share: which runs of a file, and where they run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kora.runs.processes import Stop

if TYPE_CHECKING:  # importing them takes seconds, and `kora adapt --help` needs none
    from kora.grid.dispatch import Launcher
    from kora.grid.launchers.batch import Queue

__all__ = [
    "LAUNCHERS",
    "add_file_options",
    "add_launcher_options",
    "add_lightning_options",
    "fill_launcher_options",
    "launcher",
    "lightning_options",
    "picked",
    "queue_of",
]

LAUNCHERS = ("local", "ray", "slurm", "lightning")
#: Options of launchers: the default, and who has it.
_OF = {
    "ray_address": (None, ("ray",)),
    "num_cpus": (1.0, ("ray", "slurm")),
    "num_gpus": (0.0, ("ray", "slurm")),
    "retries": (3, ("ray",)),
    "sbatch": ((), ("slurm",)),
    "on_stop": ("leave", ("slurm", "lightning")),
    "machine": ("A100", ("lightning",)),
    "studio": (None, ("lightning",)),
    "studio_folder": (None, ("lightning",)),
    "teamspace": (None, ("lightning",)),
    "interruptible": (False, ("lightning",)),
    "max_cost": (None, ("lightning",)),
}


def add_file_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--only` and `--set`."""
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="TEXT",
        help=f"{what} with one of these in their names, as --dry_run shows them",
    )  # fmt: skip
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="overrides",
        help="options of kora fit for all runs; they override `set` of the file",
    )  # fmt: skip


def picked(path: Path, what: str, names: Mapping[str, str], only: Sequence[str]) -> set[str]:
    """The names that contain a text of `only`; without texts, all names.

    A text that is a whole name, or a whole kind (`names` has the kind of each), picks that alone.

    Raises:
        ValueError: no name contains one of the texts.
    """
    for text in only:
        if not any(text in name for name in names):
            of_its_kind = [name for name, kind in names.items() if text.startswith(f"{kind}, ")]
            there = ", ".join(of_its_kind or dict.fromkeys(names.values()))
            raise ValueError(
                f"--only {text}: no {what} of {path} has this in its name. There are: {there}."
            )
    whole = {*names, *names.values()}

    def is_meant(name: str, kind: str, text: str) -> bool:
        return text in (name, kind) if text in whole else text in name

    return {
        name
        for name, kind in names.items()
        if not only or any(is_meant(name, kind, text) for text in only)
    }


def add_launcher_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--launcher`, and the options of those that are not this machine."""
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, default="local",
        help="ray: on the machines of a Ray cluster that share this folder; slurm: as a job array "
        "of a SLURM cluster; lightning: each as a job of Lightning AI",
    )  # fmt: skip
    parser.add_argument("--ray_address", metavar="HOST:PORT", help="default: that of this machine")
    parser.add_argument("--num_cpus", type=float, help=f"cores a {what} on a cluster (default 1)")
    parser.add_argument("--num_gpus", type=float, help=f"GPUs a {what} on a cluster (default 0)")
    parser.add_argument(
        "--retries", type=int, metavar="N",
        help=f"how often a {what} resumes elsewhere on ray if its machine or worker dies "
        "(default 3)",
    )  # fmt: skip
    parser.add_argument(
        "--sbatch", nargs="+", action="extend", metavar="KEY=VALUE",
        help="options of sbatch, such as partition=gpu time=4:00:00",
    )  # fmt: skip
    parser.add_argument(
        "--on_stop", choices=("leave", "stop"),
        help="what Ctrl-C does with the jobs on slurm or lightning (default: leave); the same "
        "command finds them again",
    )  # fmt: skip
    add_lightning_options(parser)


def add_lightning_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `--launcher lightning`."""
    lightning = parser.add_argument_group("with --launcher lightning")
    lightning.add_argument("--machine", metavar="NAME", help="such as L4 or A100 (default)")
    lightning.add_argument(
        "--studio", metavar="NAME", help="whose snapshot runs; default: this one"
    )
    lightning.add_argument("--teamspace", metavar="OWNER/NAME", help="default: that of the Studio")
    lightning.add_argument(
        "--studio_folder", metavar="FOLDER",
        help="folder in the Studio in which to run (default: this one in a Studio, else its home)",
    )  # fmt: skip
    lightning.add_argument(
        "--interruptible", action="store_true", default=None,
        help="cheaper machines that may be taken away; the job then starts again",
    )  # fmt: skip
    lightning.add_argument(
        "--max_cost", type=float, metavar="DOLLARS",
        help="stop all jobs when together they have cost as much",
    )  # fmt: skip


def fill_launcher_options(own: argparse.Namespace) -> None:
    """Refuse options without effect, and set the defaults of launchers.

    Raises:
        ValueError: An option is below 0, or its launcher was not asked for.
    """
    for name, (default, launchers) in _OF.items():
        given = getattr(own, name, None)  # kora adapt has only those of lightning
        if given is not None and own.launcher not in launchers:
            which = " or ".join(f"--launcher {one}" for one in launchers)
            raise ValueError(f"--{name} has no effect without {which}. Leave it out.")
        if isinstance(given, int | float) and given < 0:
            raise ValueError(f"--{name} {given:g}: expected 0 or more.")
        setattr(own, name, default if given is None else given)


def lightning_options(own: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `LightningJobs`."""
    return {
        "machine": own.machine, "studio": own.studio, "teamspace": own.teamspace,
        "folder": own.studio_folder, "interruptible": own.interruptible, "max_cost": own.max_cost,
    }  # fmt: skip


def queue_of(own: argparse.Namespace) -> Queue | None:
    """The queue that the launcher puts jobs in; None for the others.

    Raises:
        ValueError: What it needs is not installed, or not reached from here.
    """
    if own.launcher == "slurm":
        from kora.grid.launchers.slurm import Slurm

        return Slurm(num_cpus=own.num_cpus, num_gpus=own.num_gpus, options=own.sbatch)
    if own.launcher == "lightning":
        from kora.grid.launchers.lightning_jobs import LightningJobs

        return LightningJobs(**lightning_options(own))
    return None


@contextmanager
def launcher(
    own: argparse.Namespace, env: Mapping[str, str], stop: Stop, *, at_once: int | None
) -> Iterator[Launcher]:
    """The launcher that was asked for; `at_once` None: as many tasks as there is room for.

    Raises:
        ValueError: What it needs is not installed, or not reached from here.
        RuntimeError: There is no such cluster.
    """
    if own.launcher == "ray":
        from kora.grid.launchers.ray_cluster import OnRay, cluster

        with cluster(own.ray_address) as ray:
            yield OnRay(
                ray, num_cpus=own.num_cpus, num_gpus=own.num_gpus, retries=own.retries,
                at_once=at_once, stop=stop,
            )  # fmt: skip
    elif queue := queue_of(own):
        from kora.grid.launchers.batch import InQueue

        yield InQueue(queue, stop, at_once=at_once, leave=own.on_stop == "leave")
    else:
        from kora.grid.launchers.local import here

        with here(at_once or 1, env, stop) as local:
            yield local
