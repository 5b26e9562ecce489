"""The record of a run: audit before it, parameters at its start, results and pictures after it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from kora.adapters import describe
from kora.adapters.folder import save_adapter
from kora.export.model_card import write_card
from kora.loggers.wandb_record import end_wandb
from kora.reports.audit import Findings
from kora.reports.base import Report
from kora.reports.curves import CURVES
from kora.reports.fusion import FusionReport, fusion_report_for
from kora.reports.of_task import report_for
from kora.reports.parameters import ParameterReport, parameter_report
from kora.reports.summary import summary_table
from kora.runs.durable import write_text
from kora.runs.outcomes import collect, write_outcomes
from kora.runs.results import RunResult, write_results
from kora.runs.search import config_hash, without_cache
from kora.tasks import AdapterTask
from kora.tasks.adapter_record import task_record
from kora.tasks.ranks import in_one_list
from kora.training.checkpoints import best_of
from kora.training.clock import RunClock
from kora.training.resume import keep_config

__all__ = ["OutcomeRecord", "RunRecord", "peak_memory_mib"]

#: Print a path without markup and line breaks.
_AS_IT_IS: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False}


class RunRecord(Callback):
    """Writes the record of a run into its folder, on the first rank.

    Args:
        folder: `runs/<experiment>/<strategy>/seed<k>/version_<n>`.
        experiment: Name that all strategies and seeds of one comparison share.
        seed: Seed of the run.
        command: `fit`, `validate`, `test` or `predict`.
        config: The resolved config in plain types.
        allow_degenerate: Run even if the audit finds the splits unfit for the metrics.
        clock: The clock of the run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        experiment: str,
        seed: int,
        command: str,
        config: Mapping[str, Any],
        allow_degenerate: bool,
        clock: RunClock,
    ) -> None:
        self.folder = folder
        self.experiment = experiment
        self.seed = seed
        self.command = command
        self.config = dict(config)
        self.draws = config.get("pictures", True)
        self.allow_degenerate = allow_degenerate
        self.clock = clock
        self.report: Report | None = None
        self.fusion: FusionReport | None = None
        self.audit: Findings | None = None
        self.parameters: ParameterReport | None = None
        self.metrics: dict[str, float] = {}
        self.peak_memory_mib = 0.0
        self.tested_step: int | None = None
        self.together: int | None = None  # runs of one batched fit, if it was one of them
        self._seen = 0  # images evaluated, by all processes
        self._replaces = False  # config and splits of a run that is resumed, once it is accepted

    # -- before --------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Audit the splits; stop here if they cannot support the metrics."""
        if self.report is not None:
            return
        assert isinstance(pl_module, AdapterTask)
        self.folder = trainer.strategy.broadcast(self.folder)  # srun's processes can only guess it
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        self.report = report_for(pl_module, datamodule)
        self.fusion = fusion_report_for(pl_module)
        self.audit = self.report.audit()
        resumes = (self.folder / "config.yaml").exists()
        if trainer.is_global_zero:
            if not resumes:
                self._write_config()
            if self.audit is not None:
                Console().print(self.audit.render())
        if self.audit is not None:
            self.audit.check(self.allow_degenerate)
            if trainer.is_global_zero and not resumes:
                datamodule.save_splits(self.folder)
        self._replaces = resumes

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Replace config and splits of the run that is resumed: nothing has refused that."""
        self._replace(trainer)

    def _replace(self, trainer: Trainer) -> None:
        if self._replaces and trainer.is_global_zero:
            keep_config(self.folder, self.config)
            self._write_config()
            if self.audit is not None:
                trainer.datamodule.save_splits(self.folder)  # type: ignore[attr-defined]
        self._replaces = False

    def _write_config(self) -> None:
        write_text(self.folder / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what will train, and give W&B the whole config."""
        self._report(trainer, pl_module, show=True)

    def _report(self, trainer: Trainer, pl_module: LightningModule, *, show: bool) -> None:
        assert isinstance(pl_module, AdapterTask)
        if self.parameters is not None:
            return
        self.parameters = parameter_report(pl_module)
        if trainer.is_global_zero:
            if show:
                Console().print(self.parameters.render())
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    shared = {"parameters": self.parameters.to_dict()}
                    logger.log_hyperparams({**self.config, **shared})

    # -- the loops -----------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the memory now: Lightning moves the module to the CPU when the loop has ended."""
        self._note_memory(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch a fusion in the command `validate`."""
        if self.fusion is not None and self.command == "validate":
            self.fusion.begin()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of the command `validate`; draw a picture of a fit's validation."""
        assert self.report is not None
        if self.command == "validate":
            self._report(trainer, pl_module, show=False)
            self._keep(trainer)
            self._gather(trainer, "val")
        elif self.draws and not trainer.sanity_checking:
            picture = self.report.epoch_picture(self.folder, trainer.current_epoch)
            for logger in trainer.loggers:
                if picture is not None and isinstance(logger, WandbLogger):
                    logger.log_image(f"pictures/{picture.parent.name}", [str(picture)])

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what trains if no fit has done so, and watch a fusion."""
        self._report(trainer, pl_module, show=False)
        if self.fusion is not None:
            self.fusion.begin()
        assert isinstance(pl_module, AdapterTask)
        self.tested_step = pl_module.loaded_step if trainer.ckpt_path else trainer.global_step

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the memory, and keep the test metrics."""
        self._note_memory(pl_module)
        self._keep(trainer)
        self._gather(trainer, "test")

    def _gather(self, trainer: Trainer, stage: str) -> None:
        """Called on every rank, as it collects from all."""
        assert self.report is not None
        self.report.gather(stage)
        seen = torch.tensor(self.clock.images[stage], device=trainer.strategy.root_device)
        self._seen = int(trainer.strategy.reduce(seen, reduce_op="sum"))
        if self.fusion is not None:
            self.fusion.gather(trainer)

    def _note_memory(self, module: LightningModule) -> None:
        self.peak_memory_mib = max(self.peak_memory_mib, peak_memory_mib(module.device))

    def _keep(self, trainer: Trainer) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(("val/", "test/")):
                self.metrics[name] = float(value)

    # -- after ---------------------------------------------------------------------------------

    def finish(self, trainer: Trainer, task: LightningModule, datamodule: Any) -> None:
        """Write adapter, results and pictures, print the summary, end W&B."""
        assert isinstance(task, AdapterTask)
        assert self.parameters is not None
        assert self.report is not None
        best = getattr(best_of(trainer), "best_model_score", None)
        if self.command == "fit" and best is not None:
            self.metrics[f"best_{task.monitor[0]}"] = float(best)
        if not trainer.is_global_zero:
            return
        self._replace(trainer)  # no epoch was left
        protocol = datamodule.protocol() if hasattr(datamodule, "protocol") else {}
        split = "val" if self.command == "validate" else "test"
        if self._seen < protocol.get("sizes", {}).get(split, 0):  # trainer.limit_test_batches
            protocol["evaluated_images"] = {split: self._seen}
        evaluation = self.report.evaluation(split)
        if evaluation:
            protocol["evaluation"] = evaluation
        kept = task.feature_cache.record()
        seconds = self.clock.seconds() | ({"feature_cache": kept["seconds"]} if kept else {})
        without_learning = {} if self.audit is None else self.audit.baselines()
        result = RunResult(
            experiment=self.experiment,
            strategy=task.label,
            stage=self.command,
            seed=self.seed,
            metrics=self.metrics,
            baselines=without_learning | self.report.baselines(),
            protocol={**protocol, "allow_degenerate": self.allow_degenerate},
            audit={} if self.audit is None else self.audit.to_dict(),
            parameters=self.parameters.to_dict(),
            seconds={phase: round(value, 3) for phase, value in seconds.items()},
            peak_memory_mib=(self.peak_memory_mib or None) if self.together is None else None,
            together=self.together,
            backbone=task.backbone.facts,
            source=task.source_record(),
            settings={"adapter": describe(task.adapter), "training": _training(self.config)},
            config_sha256=config_hash(self.config),
            feature_cache=kept,
            tested_step=self.tested_step,
        )
        if self.command == "fit":
            save_adapter(
                self.folder / "adapter",
                task.kept_tensors(),
                adapter=task.adapter,
                backbone=task.backbone,
                extra={
                    **task_record(task, datamodule),
                    "experiment": self.experiment,
                    "seed": self.seed,
                    **self.report.record(),
                    "metrics": {k: v for k, v in self.metrics.items() if v == v},
                },
            )
        if self.command in ("fit", "test"):
            self.report.write_tables(self.folder)
        if self.fusion is not None:
            self.fusion.write_table(self.folder)
        pictures = self._pictures() if self.draws else []
        if self.command == "fit":
            write_card(self.folder / "adapter", result)
        write_results(self.folder, result)  # last: a folder with results.json is a finished run
        console = Console()
        console.print(summary_table(result))
        console.print(f"Run folder: {self.folder}", **_AS_IT_IS)
        if pictures:
            names = ", ".join(path.name for path in pictures)
            console.print(f"Pictures:   {names}", **_AS_IT_IS)
        end_wandb(
            trainer,
            console,
            pictures,
            folder=self.folder,
            result=result,
            rates=self.clock.rates(),
            report=self.report,
        )

    def _pictures(self) -> list[Path]:
        assert self.report is not None
        made: list[Path] = []
        metrics = self.folder / "metrics.csv"
        if self.command == "fit" and _has_curves(metrics):
            from kora.reports import figures

            made.append(
                figures.learning_curves(
                    metrics, self.folder / "learning_curves.png", tested_step=self.tested_step
                )
            )
        if self.command in ("fit", "test"):
            made += self.report.pictures(self.folder)
        if self.fusion is not None:
            made += self.fusion.pictures(self.folder)
        return made

    @rank_zero_only
    def write_predictions(self, trainer: Trainer, batches: Sequence[Any]) -> None:
        """Write the predictions into the run folder."""
        assert self.report is not None
        path = self.report.write_predictions(self.folder, batches)
        if path is not None:
            Console().print(f"Predictions: {path}", **_AS_IT_IS)
        end_wandb(trainer, Console(), folder=self.folder)


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that shape training, without strategy, backbone and data."""
    ways = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")
    shortened = ("limit_train_batches", "limit_val_batches", "overfit_batches", "max_time")
    elsewhere = ("backbone", "adapter", "adapter_from")
    arguments = without_cache(config["model"])["init_args"]
    return {
        **{key: value for key, value in arguments.items() if key not in elsewhere},
        **{key: config["trainer"][key] for key in ways},
        **{key: config["trainer"][key] for key in shortened if config["trainer"].get(key)},
        "batch_size": config["data"]["init_args"].get("batch_size"),
        "source": config["source"],
    }


def _has_curves(metrics_csv: Path) -> bool:
    """Whether there is a curve to draw; a run of a few steps may log only redundancy."""
    if not metrics_csv.is_file():
        return False
    with metrics_csv.open(encoding="utf-8") as file:
        logged = file.readline().strip().split(",")
    return any(f"{stage}/{name}" in logged for stage in ("train", "val") for name in CURVES)


class OutcomeRecord(Callback):
    """Writes `test_outcomes.safetensors` at the end of a test, on the first rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called on every rank, as it collects from all."""
        assert isinstance(pl_module, AdapterTask)
        batches = in_one_list([{k: v.cpu() for k, v in b.items()} for b in pl_module.tested])
        pl_module.tested = []
        found = collect([{k: v.numpy() for k, v in batch.items()} for batch in batches])
        if found is not None and trainer.is_global_zero:
            write_outcomes(self.folder, found)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB of the GPU if one is used, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
