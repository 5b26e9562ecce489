"""Compatibility check: which runs must not be averaged or subtracted, and how they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kora.compare.grouping import Grouping
from kora.compare.selection import newest
from kora.runs.config import flat
from kora.runs.results import Run
from kora.runs.search import are_of_one_config

__all__ = ["refuse_mixture", "without_strays"]

# These legitimately vary with the seed: the seed itself and the hashes of the chosen images.
_SEED_KEYS = {"seed", "sha256"}
Described = list[tuple[Run, Mapping[str, Any]]]


def refuse_mixture(runs: Sequence[Run], group: Grouping) -> None:
    """Raise ValueError if a mean or a difference would mix unlike runs; names run and key."""
    findings = _differences([(run, _shared(run)) for run in runs])
    for members in _grouped(runs, group).values():
        findings += _differences(_within(members))
    if findings:
        raise ValueError(
            "These runs cannot be compared, they differ in more than the strategy and the seed:\n"
            + "\n".join(f"  - {finding}" for finding in findings)
            + "\nGive runs that agree in these keys, or another experiment name to each kind."
        )


def without_strays(runs: Sequence[Run], group: Grouping) -> tuple[list[Run], list[str]]:
    """The newest run of every seed, of these the ones that agree with the majority, and notes.

    A sentence tells of each that is left out. If no more than half agree, there is no majority, and
    all are kept for `refuse_mixture` to refuse.
    """
    chosen, older = newest(runs, group)
    kept, notes = _majority([(run, _shared(run)) for run in chosen])
    agreeing: list[Run] = []
    for members in _grouped(kept, group).values():
        same, words = _majority(_within(members))
        agreeing += same
        notes += words
    return agreeing, [*notes, *older]


def _shared(run: Run) -> dict[str, Any]:
    """What all runs of a comparison must have in common."""
    backbone = dict(run.result.backbone)
    if backbone.get("sha256"):  # the same file may have another path on another machine
        backbone.pop("weights", None)
    return (
        _of_all_seeds(flat(run.result.protocol, "protocol"))
        | flat(backbone, "backbone")
        | {"stage": run.result.stage}
    )


def _within(members: Sequence[Run]) -> Described:
    """For each run, what all runs of a group must have in common."""
    own = [
        {
            "strategy": run.result.strategy,
            "parameters.trainable": run.result.parameters.get("trainable"),
        }
        for run in members
    ]
    settings = [flat(run.result.settings, "settings") for run in members]
    # Records of earlier versions lack later settings; then compare the configs, with defaults.
    if any(other != settings[0] for other in settings[1:]) and are_of_one_config(
        (run.folder, run.result.config_sha256) for run in members
    ):
        settings = [{} for _ in members]
    return [(run, a | b) for run, a, b in zip(members, own, settings, strict=True)]


def _grouped(runs: Iterable[Run], group: Grouping) -> dict[str, list[Run]]:
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(group(run), []).append(run)
    return grouped


def _majority(described: Described) -> tuple[list[Run], list[str]]:
    by_kind: dict[frozenset[tuple[str, str]], Described] = {}
    for run, values in described:
        signature = frozenset((key, repr(value)) for key, value in values.items())
        by_kind.setdefault(signature, []).append((run, values))
    kinds = list(by_kind.values())
    most = max(kinds, key=len, default=[])
    if len(kinds) < 2 or 2 * len(most) <= len(described):
        return [run for run, _ in described], []
    theirs = most[0][1]
    notes = []
    for kind in kinds:
        for run, mine in kind if kind is not most else []:
            keys = [k for k in {**theirs, **mine} if _said(mine, k) != _said(theirs, k)]
            words = "; ".join(f"{k} is {_said(mine, k)}, not {_said(theirs, k)}" for k in keys)
            notes.append(f"{run.folder}: left out, unlike the other {len(most)} runs: {words}.")
    return [run for run, _ in most], notes


def _differences(described: Described) -> list[str]:
    """A sentence for each key in which the runs disagree: every value with a run that has it."""
    sentences = []
    for key in dict.fromkeys(key for _, values in described for key in values):
        holders: dict[str, list[Run]] = {}
        for run, values in described:
            holders.setdefault(_said(values, key), []).append(run)
        if len(holders) > 1:
            rarest_first = sorted(holders.items(), key=lambda item: len(item[1]))
            parts = [
                f"{value} in {same[0].folder}"
                + (f" and {len(same) - 1} more" if len(same) > 1 else "")
                for value, same in rarest_first
            ]
            sentences.append(f"{key}: {'; '.join(parts)}")
    return sentences


def _said(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


def _of_all_seeds(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not _SEED_KEYS & set(key.split("."))}
