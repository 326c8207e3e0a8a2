"""A script as a process: quiet libraries, faults as plain lines, exit statuses, many processes as one."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pipeline.system import imports, readable, signals
from pipeline.system.errors import Stopped, UserError, WorldError

Item = TypeVar("Item")
_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
}  # fmt: skip


def main_process() -> bool:
    """Say whether this process is the one that writes and speaks."""
    return rank() == 0


def rank() -> int:
    """Return the number of this process among those of the launch."""
    return int(os.environ.get("RANK", "0"))


def say(name: str, text: str) -> None:
    """Print one line of a stage, from the main process alone."""
    if main_process():
        print(f"{name:<8} {text}", flush=True)


class Progress:
    """Says how far something is: for the first time after a second, then every ten; what is quick says nothing."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say, self.due = say, time.monotonic() + 1.0

    def tell(self, text: Callable[[], str]) -> None:
        """Say a line, if it is time for one."""
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + 10.0
            self.say(text())

    def along(self, items: Iterable[Item], text: Callable[[int], str]) -> Iterator[Item]:
        """Yield items, and say now and then how many there were."""
        for number, item in enumerate(items, start=1):
            yield item
            self.tell(lambda: text(number))  # noqa: B023


def reading(name: str) -> Progress:
    """Return what says how far the rows of a recipe are read."""
    return Progress(lambda text: say("data", f"{name}: {text}"))


def count() -> int:
    """Return how many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_all() -> None:
    """Wait until every process of a launch is here; nothing where there is only one."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def launch_warning() -> str:
    """Return a warning where `accelerate launch --cpu --num_processes N` started one process, as it silently does; or ""."""
    if os.environ.get("ACCELERATE_USE_CPU") != "True" or "WORLD_SIZE" in os.environ:
        return ""
    import psutil

    parent = psutil.Process(os.getppid())
    words = " ".join(parent.cmdline()).replace("=", " ").replace("num-processes", "num_processes").split()
    wanted = words[words.index("--num_processes") + 1] if "--num_processes" in words[:-1] else "1"
    if wanted == "1":
        return ""
    return (
        f"accelerate launch --cpu starts 1 process, not {wanted}; for {wanted} use LAUNCH='torchrun --nproc_per_node {wanted}'"
    )


def _quiet() -> None:
    """Keep the libraries silent, at home and quick; before they are imported, since they read it then."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    imports.quicken()
    if not sys.warnoptions:
        # trl sets an argument that transformers has renamed, on every construction; nothing a user could mend.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*checkpointing.*")
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.*")  # of what DeepSpeed calls


_LONGEST = 4000  # characters of a line
_LAST_WORD = 5.0  # seconds; whoever still lives then is the only one that met the fault
_KEPT = "; what was finished and the last whole checkpoint are as they were: the same command goes on"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# How the libraries say that a disk is full or can't be written; torch and safetensors raise no OSError for it.
_DISK = (
    "No space left",
    "File too large",
    "Disk quota exceeded",
    "Read-only file system",
    "file write failed",
    "PytorchStreamWriter",
)


def execute(body: Callable[[], int]) -> int:
    """Run a script's body; status 0 done, 2 the user's input, 130 and 143 stopped, 1 anything else."""
    _quiet()
    with readable.printed():
        return _ended(body, Path(sys.argv[0]).stem)


def _ended(body: Callable[[], int], name: str) -> int:
    """Return the exit status of a body, and print in plain lines why it failed."""
    try:
        with signals.handled(f"{name}: stopped; the same command goes on"):
            status = body()
            _shut_down()
            return status
    except UserError as error:
        if not main_process():  # a launcher ends all processes with the first one, which should be the one that speaks
            time.sleep(_LAST_WORD)
        for fault in error.faults:
            print(f"{name}: {fault if len(fault) <= _LONGEST else f'{fault[:_LONGEST]}…'}", file=sys.stderr)
        return 2
    except WorldError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        if main_process():
            print(f"\n{stop.text}", file=sys.stderr)
        return stop.status
    except OSError as error:
        kept = _KEPT if error.errno in _DISK_ERRORS else ""
        where = str(error.filename or "")[:_LONGEST]
        print(f"{name}: {error.strerror or error}{f': {where}' if where else ''}{kept}", file=sys.stderr)
        return 2 if error.errno == errno.ENAMETOOLONG else 1
    except RecursionError:
        print(
            f"{name}: something that was read is nested thousands of levels deep; look at its JSON and YAML files",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        said = " ".join(str(error).split())
        if any(word in said for word in _DISK):
            print(f"{name}: the disk is full or can't be written ({said[:160]}){_KEPT}", file=sys.stderr)
        else:
            traceback.print_exc()
        return 1


def _shut_down() -> None:
    """Leave a launch together: a process that ends while another still talks to it dies in its threads."""
    if count() > 1:
        import torch.distributed

        wait_for_all()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
