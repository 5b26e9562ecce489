"""Which runs must not be averaged or subtracted from each other, and in what they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kora.results import Run

__all__ = ["refuse_mixture"]

# These legitimately vary with the seed: the seed itself and the hashes of the chosen images.
_SEED_KEYS = {"seed", "sha256"}


def refuse_mixture(runs: Sequence[Run], by: str) -> None:
    """Raise ValueError where a mean or a difference would mix unlike things; names run and key."""
    shared = [
        (run, _flat(run.result.protocol, "protocol", drop=_SEED_KEYS) | _backbone(run))
        for run in runs
    ]
    findings = _differences(shared)
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(getattr(run.result, by), []).append(run)
    for members in grouped.values():
        findings += _differences(
            [
                (
                    run,
                    {
                        "strategy": run.result.strategy,
                        "parameters.trainable": run.result.parameters.get("trainable"),
                    }
                    | _flat(run.result.settings, "settings", drop=set()),
                )
                for run in members
            ]
        )
    if findings:
        raise ValueError(
            "These runs cannot be compared, they differ in more than the strategy and the seed:\n"
            + "\n".join(f"  - {finding}" for finding in findings)
            + "\nGive runs that agree in these keys, or another experiment name to each kind."
        )


def _backbone(run: Run) -> dict[str, Any]:
    backbone = dict(run.result.backbone)
    if backbone.get("sha256"):  # the same file may lie in another place on another machine
        backbone.pop("weights", None)
    return _flat(backbone, "backbone", drop=set()) | {"stage": run.result.stage}


def _differences(described: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[str]:
    """A sentence for each key in which the runs disagree: every value with a run that has it."""
    sentences = []
    for key in dict.fromkeys(key for _, values in described for key in values):
        holders: dict[str, list[Run]] = {}
        for run, values in described:
            holders.setdefault(repr(values[key]) if key in values else "absent", []).append(run)
        if len(holders) > 1:
            rarest_first = sorted(holders.items(), key=lambda item: len(item[1]))
            parts = [
                f"{value} in {same[0].folder}"
                + (f" and {len(same) - 1} more" if len(same) > 1 else "")
                for value, same in rarest_first
            ]
            sentences.append(f"{key}: {'; '.join(parts)}")
    return sentences


def _flat(value: Any, prefix: str, *, drop: set[str]) -> dict[str, Any]:
    """Leaves of nested tables by dotted key, without the branches named in `drop`."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        if name not in drop:
            leaves |= _flat(item, f"{prefix}.{name}", drop=drop)
    return leaves
