"""`kora tune`: the same number of trials for every combination of a grid, then the grid to run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kora.console.say import say
from kora.console.tables import terminal_table
from kora.grid.batch import TRAIN_LIST
from kora.grid.options import (
    add_file_options,
    add_launcher_options,
    fill_launcher_options,
    launcher,
    picked,
)
from kora.grid.plan import require_writable
from kora.grid.view import GridView
from kora.runs.processes import Stop, start_server
from kora.tune.batch import trainer_of_batches
from kora.tune.file import Tuning, read_tuning
from kora.tune.plan import Combination, combinations
from kora.tune.report import equality, failures, rows, set_aside, write_best, write_report
from kora.tune.run import Trouble, entries_of, run_trials
from kora.tune.study import Search, opened

__all__ = ["tune", "tune_parser"]


def tune(args: Sequence[str]) -> None:
    """Run the missing trials of a search, and write its results.

    Raises:
        ValueError: the search or one of its combinations is not accepted; nothing was started.
        RuntimeError: some combinations could not be searched; the others were.
    """
    if args[:1] == [TRAIN_LIST]:
        from kora.tune.together import train_list  # imports torch

        train_list(Path(args[1]))
        return
    own = _options(args)
    path = Path(own.config)
    environment = dict(os.environ)  # before parsing sets a seed, which no run may inherit
    tuning = read_tuning(path, own.overrides, trials=own.trials)
    if own.launcher == "local" and not own.dry_run:
        start_server()  # it imports torch while this process does
    found = combinations(path, tuning)
    folder = Path(str(found[0].config["runs_dir"])) / f"tune_{path.stem}"
    seeds = f" of {len(tuning.grid.seeds)} seeds" * (len(tuning.grid.seeds) > 1)
    names = picked(path, "combination", {one.name: one.name for one in found}, own.only)
    chosen = [one for one in found if one.name in names]
    of = f"{len(chosen)} of {len(found)}" if own.only else len(found)
    say(f"{path}: {of} combinations, {tuning.trials} trials{seeds} each.")
    _warn_of_fixed_data_seed(chosen)
    if own.dry_run:
        _dry_run(chosen, tuning, folder)
        return
    require_writable(one.config for one in chosen)
    with opened(folder, found, tuning) as searches:
        mine = [search for search in searches if search.combination.name in names]
        aside = set_aside(folder, searches)
        if aside is not None:
            say(f"{folder} held the results of another search; they are in {aside} now.")
        _say_what_is_left_out(mine)
        trouble = _run(path, mine, folder, own, environment)
        written = write_best(path, folder, searches, tuning)
        written += write_report(path, folder, searches, tuning)
        _show(path, searches, tuning)
        for file in (
            written if len(written) < 8 else [f for f in written if f.parent.name != "best"]
        ):
            say(f"wrote {file}")
        _end(mine, trouble, folder)


def tune_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora tune",
        description="Search the settings of every combination of a grid with the same number of "
        "trials, by validation alone, and write the grid of the best. Repeat the command after a "
        "stop.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", "-c", required=True, metavar="FILE", help="grid with `tune`")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="trials of each combination; overrides the file"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="trials at once; on this machine they share its cores",
    )  # fmt: skip
    add_launcher_options(parser, "trial")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="show what would run")
    add_file_options(parser, "the combinations")
    return parser


def _options(args: Sequence[str]) -> argparse.Namespace:
    own = tune_parser().parse_args(args)
    if own.jobs < 1:
        raise ValueError(f"--jobs {own.jobs}: expected 1 or more trials at once.")
    fill_launcher_options(own)
    return own


def _warn_of_fixed_data_seed(found: Sequence[Combination]) -> None:
    """Warn if `data.seed` is fixed: the last runs would then get the images of the search."""
    fixed = [
        one for one in found if (one.config["data"].get("init_args") or {}).get("seed") is not None
    ]
    if fixed:
        seed = fixed[0].config["data"]["init_args"]["seed"]
        say(
            f"data.seed is {seed} in {fixed[0].name}: the runs with the best settings will train "
            "on the images of the search. Leave it out for fresh ones."
        )


def _say_what_is_left_out(searches: Sequence[Search]) -> None:
    for search in searches:
        if search.finished > search.wanted:
            say(
                f"{search.combination.name}: {search.finished} trials are finished, and the first "
                f"{search.wanted} count, as many as were asked for."
            )


def _dry_run(found: Sequence[Combination], tuning: Tuning, folder: Path) -> None:
    for one in found:
        print(f"{one.name}: {tuning.trials} trials by {one.metric} ({one.mode}imum)")
        for dimension in one.space:
            print(f"    {dimension}")
        values = {dimension.option: dimension.corners[0] for dimension in one.space}
        print(f"    such as {one.job(0, values, one.seeds[0]).command}")
    final = ", ".join(map(str, tuning.final_seeds))
    print(f"then {folder / 'best.yaml'} for kora grid, with seeds {final}")


def _run(
    path: Path,
    searches: Sequence[Search],
    folder: Path,
    own: argparse.Namespace,
    environment: dict[str, str],
) -> Trouble:
    """Run the missing trials; exits here after a signal."""
    entries = entries_of(searches)
    missing = sum(entry.state != "finished" for entry in entries)
    say(f"{len(entries)} trials, {len(entries) - missing} of them finished.")
    if not missing:
        return Trouble()
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    say(f"the output of the trials goes into {logs}")
    view = GridView(entries, at_once=own.jobs, live=True)
    with (
        Stop.on_signals() as stop,
        launcher(own, environment, stop, at_once=own.jobs) as where,
        view,
    ):
        here = own.launcher == "local"
        together = trainer_of_batches(logs, environment, stop) if here else None
        trouble = run_trials(
            path, searches, entries,
            launcher=where, logs=logs, view=view, stop=stop, together=together,
        )  # fmt: skip
    if stop.signal is not None:
        say("stopped. Repeat the command to resume the trials that are not finished.")
        sys.exit(stop.exit_code)
    return trouble


def _show(path: Path, searches: Sequence[Search], tuning: Tuning) -> None:
    heads, lines = rows(searches)
    console = Console()
    console.print(terminal_table(heads, lines, left=(0, 5), title=f"Search of {path}"))
    for sentence in equality(searches, tuning):
        console.print(sentence, markup=False, highlight=False)


def _end(searches: Sequence[Search], trouble: Trouble, folder: Path) -> None:
    """Print what failed; an error if a combination does not have all of its trials."""
    failed = failures(searches)
    if failed:
        print("Failed trials, which count as trials:\n" + "\n".join(f"  - {f}" for f in failed))
    lines = [f"{name}: {why}" for name, why in trouble.mistakes.items()]
    lines += [f"{name}: {why}" for name, why in trouble.killed.items()]
    lines += [f"trials were not run: {trouble.elsewhere}"] * bool(trouble.elsewhere)
    without = [
        search.combination.name
        for search in searches
        if search.best() is None and search.combination.name not in trouble.mistakes
        and all(one.state == "failed" for one in search.trials())
    ]  # fmt: skip
    if without and not lines:
        raise RuntimeError(
            f"every trial failed of {', '.join(without)}, so nothing is known of the best "
            f"settings. The logs are in {folder / 'logs'}; change tune.space, or the config."
        )
    lines += [f"{name}: every trial failed" for name in without]
    if lines:
        text = "\n".join(f"  - {line}" for line in lines)
        raise RuntimeError(
            "some combinations lack trials, so they are not tuned equally yet. The logs are in "
            f"{folder / 'logs'}; repeat the command to resume.\n{text}"
        )
