"""One call of `kora adapt`: its options, its clock, and the commands that follow it."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path

from kora.console.formats import duration
from kora.console.say import say
from kora.runs.durable import write_text
from kora.runs.processes import Stop

__all__ = ["USUAL_MINUTES", "Call", "StoppedError", "commands_of", "require_place"]

#: Without --minutes, a strategy that trains through the backbone is tried if all can end by then.
USUAL_MINUTES = 20.0
_PRECISIONS = "32-true", "bf16-mixed"
_PRECISION = "precision.txt"


class StoppedError(RuntimeError):
    """A signal came; finished work is kept."""


def require_place(place: Path) -> None:
    """Check that there is something to look at.

    Raises:
        FileNotFoundError: There is no such folder or file.
    """
    if not place.exists():
        raise FileNotFoundError(f"There is no folder {place}. Name a folder of pictures.")


@dataclass(frozen=True)
class Call:
    """The options of a call, checked.

    Args:
        place: The folder or table of images.
        home: Folder of everything that is made.
        backbone: Its name in timm.
        weights: A file, or `pretrained`.
        minutes: Time for everything; None: what strategies on cached features need, and one that
            trains through the backbone, if `USUAL_MINUTES` are enough for both.
        seed: Of the splits and fits.
        stop: Whether a signal came.
        began: When, by `time.monotonic`.
    """

    place: Path
    home: Path
    backbone: str
    weights: str
    minutes: float | None
    seed: int
    stop: Stop
    began: float = field(default_factory=time.monotonic)

    @property
    def budget_s(self) -> float:
        """Seconds for everything."""
        return 60 * (USUAL_MINUTES if self.minutes is None else self.minutes)

    def say_if_short(self, what: str, seconds: float) -> None:
        """Say so if the minutes are less than what is tried in any case."""
        if self.minutes is not None and seconds > self.budget_s:
            say(
                f"--minutes {self.minutes:g} is less than {what} take: {duration(seconds)}. They "
                "are tried all the same."
            )

    @property
    def most_fits(self) -> int | None:
        """Fits of the first round through the backbone, at most; None: as many as there are."""
        return 1 if self.minutes is None else None

    @property
    def passed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def left_s(self) -> float:
        """Seconds that are left for everything."""
        return self.budget_s - self.passed_s

    def precision(self, in_half: bool) -> str:
        """Lightning's name of the precision of fits: the one that an earlier call here kept.

        Another one would train them again. Without one, bfloat16 if `in_half`.
        """
        file = self.home / _PRECISION
        kept = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        return kept if kept in _PRECISIONS else _PRECISIONS[in_half]

    def keep_precision(self, name: str) -> None:
        """Keep the precision for later calls."""
        write_text(self.home / _PRECISION, f"{name}\n")

    def require_no_signal(self) -> None:
        """Check for a signal.

        Raises:
            StoppedError: One came.
        """
        if self.stop.signal is not None:
            raise StoppedError("stopped. Repeat the command to resume from here.")

    def commands(self, run: Path, predictions: str = "predictions") -> list[tuple[str, str]]:
        """What to do next with the best run, with the command for it."""
        place = str(self.place)
        place = f"./{place}" if place.startswith("-") else place  # which would be an option
        words = ["kora", "adapt", place, "--backbone", self.backbone]
        words += [] if self.weights == "pretrained" else ["--weights", self.weights]
        more = max(60.0, 2 * (self.minutes or 0.0))
        words += ["--out", str(self.home), "--seed", str(self.seed), "--minutes", f"{more:g}"]
        return [*commands_of(run, predictions), ("continue with more minutes", shlex.join(words))]


def commands_of(run: Path, predictions: str = "predictions") -> list[tuple[str, str]]:
    """What to do with a run, with the command for it."""
    predict = ["kora", "predict", str(run), "--images", "FOLDER", "--out", predictions]
    return [
        ("predict", shlex.join(predict)),
        ("export", shlex.join(["kora", "export", str(run), "--format", "onnx"])),
    ]
