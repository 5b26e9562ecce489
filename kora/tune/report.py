"""The results of a search: a table, a record, the best settings, and the next grid."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kora.console.formats import format_metric
from kora.console.tables import csv_text, in_markdown, markdown_table
from kora.grid.plan import resolved
from kora.runs.durable import write_text
from kora.tune.file import Dimension, Tuning
from kora.tune.plan import Combination
from kora.tune.study import Search, Trial

__all__ = [
    "equality",
    "fragment_of",
    "record",
    "rows",
    "set_aside",
    "table",
    "trials_csv",
    "write_best",
    "write_report",
]


def rows(searches: Sequence[Search]) -> tuple[list[str], list[list[str]]]:
    """Headings and a row for each combination, as text."""
    heads = ["combination", "trials", "failed", "options", "best value", "settings", "to the edge",
             "seconds"]  # fmt: skip
    lines = []
    for search in searches:
        trials, best = search.trials(), search.best()
        over = [one for one in trials if one.state != "open"]
        failed = sum(one.state == "failed" for one in over)
        lines.append(
            [
                search.combination.name,
                str(len(over)),
                str(failed),
                str(len(search.combination.space)),
                "–" if best is None else format_metric(search.combination.metric, best.value),
                "–" if best is None else _settings(best.values),
                _to_the_edge(search),
                f"{sum(one.seconds for one in over):,.0f}",
            ]
        )
    return heads, lines


def _settings(values: Mapping[str, Any]) -> str:
    """Settings in short: the last parts of the names, three digits."""
    ends = [option.rpartition(".")[2] for option in values]
    names = [o if ends.count(e) > 1 else e for o, e in zip(values, ends, strict=True)]
    return ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in zip(names, values.values(), strict=True)
    )


def _to_the_edge(search: Search) -> str:
    """Decades from each value of the best trial to the nearer end of the searched range."""
    best = search.best()
    logs = [one for one in search.searched if one.log]
    if best is None or not logs:
        return "–"
    found = {one.option: one.from_the_edge(best.values[one.option]) for one in logs}
    return _settings({option: round(decades, 1) for option, decades in found.items()})


def _at_the_edge(searches: Sequence[Search]) -> list[str]:
    """The best settings at an edge of the searched range, with the name of each search."""
    return [
        f"{search.combination.name} ({one.option}={best.values[one.option]:.3g}"
        f"{', beyond which a trial failed' * _failed_beyond(search, one)})"
        for search in searches
        if (best := search.best()) is not None
        for one in search.searched
        if one.at_the_edge(best.values[one.option])
    ]


def _failed_beyond(search: Search, one: Dimension) -> bool:
    failed = (trial.values[one.option] for trial in search.trials() if trial.state == "failed")
    return any(not one.low <= value <= one.high for value in failed)


def _widened(searches: Sequence[Search]) -> list[str]:
    """The ranges that were widened, with the name of each search."""
    return [
        f"{search.combination.name} ({now})"
        for search in searches
        for given, now in zip(search.combination.space, search.searched, strict=True)
        if given != now
    ]


def equality(searches: Sequence[Search], tuning: Tuning) -> list[str]:
    """Sentences on what was equal between the combinations, and what was not."""
    counts: dict[int, list[str]] = {}
    options: dict[tuple[str, ...], list[str]] = {}
    for search in searches:
        over = sum(one.state != "open" for one in search.trials())
        counts.setdefault(over, []).append(search.combination.name)
        names = tuple(one.option for one in search.combination.space)
        options.setdefault(names, []).append(search.combination.name)
    seeds = ", ".join(map(str, tuning.grid.seeds))
    several = "s" * (len(tuning.grid.seeds) > 1)
    said = [
        f"Sampler {tuning.sampler} of seed {tuning.seed} for each; every trial trains with "
        f"seed{several} {seeds} and is never tested.",
        f"Trials: {_who(counts, str)}.",
        f"Options: {_who(options, ', '.join)}.",
    ]
    metrics = dict.fromkeys((s.combination.metric, s.combination.mode) for s in searches)
    widened, edge = _widened(searches), _at_the_edge(searches)
    if widened:
        said.append(f"Widened, as the best trial was at an end: {'; '.join(widened)}.")
    if edge:
        said.append(
            f"At the edge: {'; '.join(edge)}. A better setting may lie beyond it: ask for more "
            "trials (--trials), which search a wider range."
        )
    said += [f"Value: {metric}, {mode}imum, mean over the seeds." if several else
             f"Value: {metric}, the {mode}imum is best." for metric, mode in metrics]  # fmt: skip
    return said


def _who(kinds: Mapping[Any, list[str]], text: Any) -> str:
    if len(kinds) == 1:
        return f"{text(next(iter(kinds)))} in all {len(next(iter(kinds.values())))}"
    return "; ".join(f"{text(kind)} in {' and '.join(names)}" for kind, names in kinds.items())


def table(title: str, searches: Sequence[Search], tuning: Tuning) -> str:
    """The table as Markdown, with what was equal and every failure."""
    heads, lines = rows(searches)
    text = [f"# {in_markdown(title)}", "", *markdown_table(heads, lines), ""]
    text += [f"- {in_markdown(sentence)}" for sentence in equality(searches, tuning)]
    text += [f"- failed: {in_markdown(line)}" for line in failures(searches)]
    return "\n".join(text) + "\n"


def failures(searches: Sequence[Search]) -> list[str]:
    """The failed trials of each combination, grouped by reason."""
    lines = []
    for search in searches:
        whys: dict[str, list[Trial]] = {}
        for one in search.trials():
            if one.state == "failed":
                whys.setdefault(one.why, []).append(one)
        for why, same in whys.items():
            numbers = ", ".join(f"{one.number} ({_settings(one.values)})" for one in same)
            lines.append(f"{search.combination.name}, trial {numbers}: {why}")
    return lines


def record(searches: Sequence[Search], tuning: Tuning) -> dict[str, Any]:
    """The whole search in plain types."""
    return {
        "sampler": tuning.sampler,
        "seed": tuning.seed,
        "trials": tuning.trials,
        "final_seeds": list(tuning.final_seeds),
        "combinations": [
            {
                "name": s.combination.name,
                "study": s.name,
                "files": list(s.combination.files),
                "options": list(s.combination.options),
                "metric": s.combination.metric,
                "mode": s.combination.mode,
                "seeds": list(s.combination.seeds),
                "space": {one.option: one.to_dict() for one in s.combination.space},
                "searched": {one.option: one.to_dict() for one in s.searched},
                "trials": [one._asdict() for one in s.trials()],
            }
            for s in searches
        ],
    }


def trials_csv(searches: Sequence[Search]) -> str:
    """Every trial in a line: its combination, number, value, seconds, state and settings."""
    options = list(dict.fromkeys(d.option for s in searches for d in s.combination.space))
    rows = [
        {
            "combination": search.combination.name,
            "trial": one.number,
            "metric": search.combination.metric,
            "value": one.value,
            "seconds": one.seconds,
            "state": one.state,
            **one.values,
        }
        for search in searches
        for one in search.trials()
    ]
    return csv_text(rows, ["combination", "trial", "metric", "value", "seconds", "state", *options])


def fragment_of(path: Path, one: Combination, trial: Trial) -> dict[str, Any]:
    """The part of a config that the grid's options and the trial's values set, as nested keys."""
    config = resolved(path, one.job(trial.number, trial.values, one.seeds[0]))
    nested: dict[str, Any] = {}
    for option in (*one.varied, *trial.values):
        *parents, leaf = option.split(".")
        node, mine = config, nested
        for part in parents:
            if part not in node:
                node, mine = node["init_args"], mine.setdefault("init_args", {})
            node, mine = node[part], mine.setdefault(part, {})
        if leaf not in node:
            node, mine = node["init_args"], mine.setdefault("init_args", {})
        mine[leaf] = node[leaf]
    return nested


def write_best(path: Path, folder: Path, searches: Sequence[Search], tuning: Tuning) -> list[Path]:
    """A fragment for each combination that has a best trial, and the grid of all of them."""
    written, entries, missing = [], [], []
    base = list(tuning.grid.base)
    for search in searches:
        one, best = search.combination, search.best()
        if best is None:
            missing.append(one.name)
            continue
        over = sum(trial.state != "open" for trial in search.trials())
        head = (
            f"# {one.name}: trial {best.number}, the best of {over}, with {one.metric} "
            f"{format_metric(one.metric, best.value)} on validation images.\n"
            f"# Found by kora tune --config {path}; study {search.name}.\n"
        )
        target = folder / "best" / f"{one.slug}.yaml"
        written.append(write_text(target, head + _yaml(fragment_of(path, one, best))))
        entries.append([*one.files[len(base) :], str(target)])
    if not entries:
        return written
    grid = {
        **({"base": base} if base else {}),
        "vary": {"config": entries},
        "seeds": list(tuning.final_seeds),
        **({"set": dict(tuning.grid.options)} if tuning.grid.options else {}),
    }
    tuned = ", ".join(map(str, tuning.grid.seeds))
    head = (
        f"# The best settings that kora tune --config {path} found, with seeds that it did not "
        f"train with ({tuned}).\n#\n# Run:      kora grid --config {folder / 'best.yaml'}\n"
    )
    head += "".join(f"# Missing:  {name}, of which no trial finished\n" for name in missing)
    written.append(write_text(folder / "best.yaml", head + _yaml(grid)))
    return written


def set_aside(folder: Path, searches: Sequence[Search]) -> Path | None:
    """Move the results of other studies away: of another file of this name, or another space.

    Returns:
        The folder in which they are; None if there are none.

    Raises:
        OSError: They cannot be moved.
    """
    try:
        content = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        before = {one["study"] for one in content["combinations"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if before & {search.name for search in searches}:
        return None
    aside = next(
        place for n in itertools.count(1) if not (place := folder / f"earlier_{n}").exists()
    )
    aside.mkdir()
    for name in ("best", "best.yaml", "table.md", "trials.csv", "record.json"):
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    for picture in folder.glob("trials*.png"):
        picture.rename(aside / picture.name)
    grid = aside / "best.yaml"
    if grid.is_file():
        text = grid.read_text(encoding="utf-8")
        write_text(grid, text.replace(str(folder / "best"), str(aside / "best")))
    return aside


def write_report(
    path: Path, folder: Path, searches: Sequence[Search], tuning: Tuning
) -> list[Path]:
    """Write table, record, trials and pictures; returns their paths."""
    from kora.tune.figures import trial_pictures

    text = table(f"Search of {path.stem}", searches, tuning)
    content = json.dumps(record(searches, tuning), indent=2) + "\n"
    written = [
        write_text(folder / "table.md", text),
        write_text(folder / "record.json", content),
        write_text(folder / "trials.csv", trials_csv(searches)),
    ]
    return written + trial_pictures(searches, folder / "trials.png")


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=110)
