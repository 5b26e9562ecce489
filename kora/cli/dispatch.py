"""The command `kora`. Looks at the first word and imports only what that command needs."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from glob import glob
from importlib import import_module
from typing import Any, NoReturn

from kora import __version__
from kora.console.errors import explain, hint

__all__ = ["FIT_USAGE", "MEASURE_USAGE", "PARSERS", "USAGE", "main"]

USAGE = """\
usage: kora COMMAND [options]

Train and compare adapters on frozen vision transformers.

  adapt     from a folder of pictures to the best model  kora adapt FOLDER

  fit       train, choose the best checkpoint by validation, test it once, record the run
  validate  measure a checkpoint on the validation part
  test      measure a checkpoint on the test set
  predict   write a checkpoint's predictions for the test set, or
              for a folder of images                   kora predict RUN --images FOLDER

  params    what trains, where and how much            kora params --config FILE [--json]
              at one budget: their ranks and widths    kora params --config FILE --match FILES...
  data      sizes, classes and audit, or download      kora data describe|prepare --config FILE
              the frozen features, computed ahead      kora data cache --config FILE
  grid      every combination of options and seeds     kora grid --config GRID [--jobs N]
  tune      the same search of settings for each       kora tune --config GRID [--jobs N]
  compare   a table over finished runs with intervals  kora compare RUNS...
  dashboard the view of a W&B project that compares    kora dashboard ENTITY/PROJECT
  cka       how alike layers are, of one run or two    kora cka RUN [RUN2]
  paper     the KoRA paper's tables beside runs        kora paper table2 --runs runs
  inspect   what each node or update has become        kora inspect RUN [--images N]
  export    for peft, timm or ONNX, and compared       kora export RUN --format timm
  push      the adapter of a run, to the hub           kora push RUN OWNER/NAME
  list      strategies, data modules, and what else a config may name
  init      copies of the configs, to edit             kora init [FOLDER]
  completion  what Tab completes in bash or zsh        kora completion bash

  kora fit --config configs/quickstart.yaml            needs no download and no GPU
  kora fit --config A.yaml --config B.yaml --model.adapter.rank 4
                                                       later files and options win
  kora test --trust MODULE ...                         a run may name the classes of MODULE too
  kora COMMAND --help                                  the options of a command
  kora --version
"""

FIT_USAGE = """\
usage: kora fit --config FILE [--config FILE ...] [options]

Train, choose the best checkpoint by validation, test it once, and record the run.

  --config FILE                      an experiment, or a fragment; later files and options win
  --experiment NAME                  runs of one name are compared with each other
  --runs_dir FOLDER                  where run folders go (default: runs)
  --seed_everything N                seed of all that is drawn at random (default: 0)
  --resume                           resume the unfinished run of this config
  --model.backbone.name NAME         any vision transformer of timm
  --model.backbone.weights FILE      its weights (default: pretrained)
  --model.adapter CLASS              a strategy, as in `kora list`; then --model.adapter.rank N, ...
  --model.optimizer.lr X             learning rate of the adapter
  --model.head_lr X                  learning rate of the head
  --data.root FOLDER                 where the images are; --data CLASS is another data module
  --data.batch_size N                images a step
  --trainer.max_epochs N             passes over the training images
  --trainer.accelerator NAME         auto, cpu or gpu; --trainer.devices N: how many
  --trainer.precision NAME           32-true or bf16-mixed, say
  --wandb.mode NAME                  auto, online, offline or disabled

  --help all                         every option
  --print_config                     the config that these words make
"""

#: Of `kora validate` and `kora test`.
MEASURE_USAGE = """\
usage: kora {command} --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt [options]

Measure a checkpoint on the {part}, and record the result as a run.

  --config FILE                      the config of its run; later files and options win
  --ckpt_path FILE                   the checkpoint
  --data.root FOLDER                 where the images are now
  --data.eval_batch_size N           images a step
  --trainer.accelerator NAME         auto, cpu or gpu
  --trainer.precision NAME           32-true or bf16-mixed, say

  --help all                         every option
"""

Command = Callable[[Sequence[str]], None]


def _imported(module: str) -> Any:
    """A module. What its imports make is not looked through for garbage, now or later.

    That is half a million objects of torch, Lightning and timm, which stay.
    """
    if module in sys.modules or not gc.isenabled():
        return import_module(module)
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(_let_go)


def _let_go() -> None:
    """At the end: triton's bindings print a page of leaks if Python does not collect them.

    Without triton that would only take time.
    """
    if "triton" in sys.modules:
        gc.unfreeze()


def _lightning(command: str) -> Command:
    def run(args: Sequence[str]) -> None:
        if list(args) in (["--help"], ["-h"]):
            part = {"validate": "validation part", "test": "test set"}.get(command, "")
            usage = MEASURE_USAGE.format(command=command, part=part)
            print(FIT_USAGE if command == "fit" else usage, end="")
            return
        if list(args) == ["--help", "all"]:
            args = ["--help"]
        _imported("kora.training.lightning_cli").run_lightning([command, *args])

    return run


def _is_of_a_config(args: Sequence[str]) -> bool:
    """Whether the words of `kora predict` are the options of a config, for Lightning."""
    named = any(arg.split("=")[0] in ("--images", "--help", "-h") for arg in args)
    return bool(args) and args[0].startswith("-") and (not named or list(args) == ["--help", "all"])


def _predict(args: Sequence[str]) -> None:
    """Images by a run, or a data set by Lightning."""
    if _is_of_a_config(args):
        _lightning("predict")(args)
    else:
        _in(*_OWN["predict"])(args)


def _in(module: str, name: str) -> Command:
    """The command that a module has, which is imported when it runs."""

    def run(args: Sequence[str]) -> None:
        getattr(_imported(module), name)(args)

    return run


#: Modules without torch that have COMMAND_parser. Help, mistakes in the options and folders that
#: are no runs are told before the command's own module is imported.
_OPTIONS = {
    **dict.fromkeys(("export", "predict", "push"), "kora.export.options"),
    **dict.fromkeys(("cka", "inspect"), "kora.inspect.options"),
}


def _check_early(command: str, args: Sequence[str]) -> None:
    """Parse the options of a command on runs, and refuse folders that are none, as it would."""
    if command not in _OPTIONS or (command == "predict" and _is_of_a_config(args)):
        return
    parser = getattr(import_module(_OPTIONS[command]), f"{command}_parser")()
    named = getattr(parser.parse_known_args(args)[0], "run", [])
    for run in [named] if isinstance(named, str) else named:
        if run.startswith("hf:/"):
            continue
        from kora.runs.adapter_config import local_adapter_folder, read_adapter_config, run_of
        from kora.runs.durable import expand
        from kora.runs.results import read_results

        if command == "cka":  # needs the results, and not the adapter alone
            read_results(run_of(expand(run)))
        else:
            read_adapter_config(local_adapter_folder(run))


#: The module and function of each command that is not of Lightning's.
_OWN = {
    "adapt": ("kora.adaptation.command", "adapt_command"),
    "predict": ("kora.export.predict", "predict_command"),
    "export": ("kora.export.command", "export_command"),
    "push": ("kora.export.hub", "push_command"),
    "params": ("kora.cli.params", "params"),
    "data": ("kora.cli.params", "data"),
    "grid": ("kora.grid.command", "grid"),
    "tune": ("kora.tune.command", "tune"),
    "compare": ("kora.cli.compare", "compare"),
    "dashboard": ("kora.cli.dashboard", "dashboard"),
    "cka": ("kora.inspect.cka", "cka_command"),
    "paper": ("kora.paper.command", "paper_command"),
    "inspect": ("kora.inspect.command", "inspect_command"),
    "list": ("kora.cli.listing", "main"),
    "init": ("kora.cli.init", "main"),
    "completion": ("kora.cli.completion", "main"),
}
_COMMANDS: dict[str, Command] = {
    **{name: _in(*where) for name, where in _OWN.items()},
    **{name: _lightning(name) for name in ("fit", "validate", "test")},
    "predict": _predict,
}
#: The module with COMMAND_parser of each of them.
PARSERS = {name: _OPTIONS.get(name, module) for name, (module, _) in _OWN.items()}

#: Commands with the options of a config.
_TAKES_CONFIG = ("fit", "validate", "test", "params", "data")

#: Columns below which tables cannot be drawn.
_NARROWEST = 20

#: Commands that read files in which classes may be named.
_NAMES_CLASSES = set(_COMMANDS) - {
    "adapt", "compare", "completion", "dashboard", "init", "list", "paper"
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Exits with 0 when all went well, 2 for a mistake in what was asked (options, config, settings),
    1 for a failure while doing it and 130 after Ctrl-C. A mistake is told in one line; KORA_DEBUG=1
    shows the traceback as well.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    width = os.environ.get("COLUMNS", "")
    if width.isdecimal() and int(width) < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _command(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail("interrupted.", code=128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            sys.exit(128 + signal.SIGPIPE)
        told = _told(error)
        if isinstance(error, OSError) and error.errno and not error.filename and _output_fails():
            told = OSError(
                f"what was printed cannot be written ({error}). Make room where it goes."
            )
        code = 1 if told is None or not isinstance(told, ValueError) else 2
        if told is None or os.environ.get("KORA_DEBUG"):
            traceback.print_exc()
            sys.exit(code)
        _fail(str(told), code=code)


def _command(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if args[0] in ("-V", "--version"):
        print(f"kora {__version__}")
        return
    command = _COMMANDS.get(args[0])
    if command is None:
        near = hint(args[0], _COMMANDS)
        _fail(f"there is no command '{args[0]}'.{near} `kora --help` lists them.", code=2)
    if args[0] not in _NAMES_CLASSES or args[1:] in (["--help"], ["-h"]):
        _check_early(args[0], args[1:])  # prints the help
        command(args[1:])
        return
    from kora.console.say import RANKS

    for name in (*RANKS, "WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():  # Lightning reads them where it is imported
            _fail(
                f"the environment has {name}={os.environ[name]!r}, expected a whole number. Unset "
                "it, or start the processes of a run with torchrun or srun, which set it.",
                code=2,
            )
    args = [args[0], *_with_configs(args[1:])]
    if args[0] in _TAKES_CONFIG:
        from kora.cli.spelling import refuse_mistyped

        refuse_mistyped(args[1:])
    from kora.runs.trust import policy_for, split_trust

    _check_early(args[0], split_trust(args[1:])[0])
    with policy_for(args):
        command(split_trust(args[1:])[0])


def _with_configs(args: Sequence[str]) -> list[str]:
    """The words with the paths of the configs that they name: `--config quickstart` is one of ours.

    A name that is none is told before torch is imported, with the nearest.
    """
    from kora.runs.config_files import configs_folder, find_config

    words = list(args)
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option not in ("--config", "-c"):
            continue
        at = place if equals else place + 1
        name = value or next(iter(words[at : at + 1]), "")
        if not name or name.startswith("-") or any(sign in name for sign in "\n:{"):
            continue  # none, or the text of a config
        path = find_config(name)
        if not os.path.exists(path):
            ours = configs_folder()
            found = [p.relative_to(ours.parent).as_posix() for p in ours.rglob("*.yaml")]
            known = sorted([*found, *glob("*.yaml")])
            end = os.path.basename(name).removesuffix(".yaml") + ".yaml"
            same = [one for one in known if os.path.basename(one) == end]
            short = [one.removeprefix("configs/").removesuffix(".yaml") for one in known]
            alike = hint(name, known) or hint(name, short)
            near = f" Did you mean '{same[0]}'?" if same else alike
            _fail(f"{name}: there is no such file.{near} `kora list configs` lists them.", code=2)
        words[at] = f"{option}={path}" if equals else path
    return words


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more, as behind `kora ... | head`."""
    look = select.poll()
    look.register(sys.stdout, 0)
    if not look.poll(0):
        return False
    _forget_output()
    return True


def _output_fails() -> bool:
    """Whether nothing more can be printed, as one line shows."""
    try:
        print(flush=True)
    except OSError:
        _forget_output()
        return True
    return False


def _forget_output() -> None:
    """Or Python would try it again at its end, and tell of that."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _fail(message: str, *, code: int) -> NoReturn:
    from kora.console.tables import visible

    print(f"kora: error: {visible(message)}", file=sys.stderr)
    sys.exit(code)


def _told(error: Exception) -> Exception | None:
    """The error that this project worded for its users; None for a bug, which shows its traceback.

    Our own ValueErrors are mistakes in what was asked; our RuntimeErrors and OSErrors are failures
    of the world. Whose an error is, is told by where it was raised. What Lightning and torch's
    optimisers refuse in words of their own is a mistake in their options. The parser wraps errors
    of constructors in its own, so the whole chain is looked at.
    """
    link: BaseException | None = error
    while link is not None:
        raised_in = _package(link)
        if type(link).__module__.split(".")[0] in ("kora", "datamodules"):
            return _as_worded(link)  # raised anew by torch where a loader process met it
        lack = _lack(link)
        if lack is not None:
            return lack
        if raised_in in ("kora", "datamodules"):
            if isinstance(link, ValueError | RuntimeError | OSError):
                return link
        elif type(link).__name__ == "MisconfigurationException":
            return ValueError(str(link))  # Lightning's word for what the trainer cannot do
        elif raised_in == "lightning" and type(link) in (ValueError, RuntimeError):
            return ValueError(f"trainer: {' '.join(str(link).split())}")
        elif _module(link).startswith("torch.optim.") and type(link) in (ValueError, RuntimeError):
            return ValueError(f"model.optimizer: {link}. Choose another, or other settings of it.")
        link = link.__cause__ or (link.__context__ if raised_in == "jsonargparse" else None)
    if isinstance(error, ValueError) and _package(error) == "jsonargparse":
        return ValueError(explain(str(error), ()))
    return _from_the_system(error) if isinstance(error, OSError) else None


_PERMISSIONS = "Change its permissions or those of its folder, or name another."
_ROOM = "Make room, or name another place."
_REMEDIES = {
    errno.EACCES: _PERMISSIONS, errno.EPERM: _PERMISSIONS, errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM,
}  # fmt: skip


def _from_the_system(error: OSError) -> OSError:
    """An error that Python worded, with the file first and a remedy; others as they are."""
    if error.filename is None or error.filename2 is not None or error.errno is None:
        return error
    remedy = _REMEDIES.get(error.errno, "Name another.")
    return OSError(f"{error.filename}: {error.strerror}. {remedy}")


def _lack(error: BaseException) -> RuntimeError | None:
    """What the machine has too little of, in our words; it is met in anybody's code."""
    text = str(error).strip() or type(error).__name__
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, of an accelerator
        or "can't allocate memory" in text  # torch's, of the CPU
        or getattr(error, "errno", None) == errno.ENOMEM
    ):
        return RuntimeError(
            f"There is too little memory ({text.splitlines()[0]}). Use smaller batches "
            "(data.batch_size, data.eval_batch_size) or a smaller backbone."
        )
    no_semaphore = (
        _package(error) == "multiprocessing" and getattr(error, "errno", 0) == errno.ENOSPC
    )
    if no_semaphore or text.startswith("DataLoader worker"):
        what = "could not start" if no_semaphore else "ended"
        return RuntimeError(
            f"A loader process {what} ({text}). Where /dev/shm is small (in a container: "
            "--shm-size) or memory is short, use fewer of them: --data.num_workers 0 "
            "(--num_workers 0 of kora predict)."
        )
    return None


def _as_worded(error: BaseException) -> Exception:
    """An error of our own kind, without the traceback that torch puts into its message."""
    assert isinstance(error, Exception)
    kind, text = type(error), str(error)
    marker = f"{kind.__module__}.{kind.__qualname__}: "
    return kind(text.rpartition(marker)[2].strip()) if text.startswith("Caught ") else error


def _package(error: BaseException) -> str:
    """The top-level package whose code raised it."""
    return _module(error).split(".")[0]


def _module(error: BaseException) -> str:
    """The module whose code raised it."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return "" if step is None else str(step.tb_frame.f_globals.get("__name__", ""))
