"""Trackers that a profile names under `report_to`: each receives one run for each node, however often it is resumed.

The library's own callbacks report. What they lack is added here: a name and an id that a resumed process finds again, and that
a tracker which fails in the middle of a run is told of once and never ends it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback

from pipeline.chain import manifest
from pipeline.chain.resume import TRACKED
from pipeline.chain.run import Run
from pipeline.system.errors import UserError

_PROJECT = "tristage"
_KNOWN = {"tensorboard": TensorBoardCallback, "wandb": WandbCallback, "mlflow": MLflowCallback, "trackio": TrackioCallback}
_BEGINS, _LATER = "on_train_begin", ("on_log", "on_save", "on_train_end", "on_evaluate", "on_predict")


def follow(run: Run, trainer: Any) -> None:
    """Let the trackers of a trainer report under `PROFILE/NODE-ID`, and go on in the same run after a kill.

    What a tracker reads from the environment is left as it is where somebody set it. Raises UserError, before the first step,
    where a tracker can't begin a run.
    """
    trackers: list[tuple[str, Any]] = [
        (name, callback)
        for callback in trainer.callback_handler.callbacks
        for name, kind in _KNOWN.items()
        if isinstance(callback, kind)
    ]
    if not trackers or not run.main:
        return
    kept = run.output / TRACKED
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"id": secrets.token_hex(4)}
    manifest.write_json(kept, known)
    profile = run.record["profile"] or run.output.parent.name
    arguments = trainer.args
    arguments.run_name = arguments.run_name or f"{profile}/{run.name}-{known['id']}"
    if arguments.project == "huggingface":  # the library's default
        arguments.project = _PROJECT
    usual = {
        "WANDB_PROJECT": _PROJECT, "WANDB_RUN_ID": known["id"], "WANDB_RESUME": "allow", "WANDB_SILENT": "true", "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_EXPERIMENT_NAME": _PROJECT, "MLFLOW_RUN_ID": known.get("mlflow", ""),
    }  # fmt: skip
    for key, value in usual.items():
        if value:
            os.environ.setdefault(key, value)
    run.say(f"reports to {', '.join(name for name, _ in trackers)} as {arguments.run_name}")
    for name, callback in trackers:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(run.output.parent / "tensorboard" / f"{run.name}-{known['id']}")
        _guard(run, name, callback)
    if any(name == "mlflow" for name, _ in trackers):
        trainer.add_callback(_Remember(kept, known))


def _guard(run: Run, name: str, callback: TrainerCallback) -> None:
    """Let a tracker's failure be a plain line: at the beginning a refusal, later a warning and the end of its reports."""
    failed = False

    def guarded(event: Callable[..., Any], begins: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal failed
            if failed:
                return None
            try:
                with contextlib.redirect_stdout(io.StringIO()) if begins else contextlib.nullcontext():
                    return event(*arguments, **named)
            except Exception as error:
                line = " ".join(str(error).split())[:300] or type(error).__name__
                if begins:
                    raise UserError(f"report_to: {name} can't begin a run: {line}") from None
                failed = True
                run.say(f"report_to: {name} failed ({line}); training goes on without it")
                return None

        return call

    for event in (_BEGINS, *_LATER):
        if hasattr(callback, event):
            setattr(callback, event, guarded(getattr(callback, event), event == _BEGINS))


class _Remember(TrainerCallback):
    """Keep the id that MLflow gives to a run, which it can only go on with and not be given."""

    def __init__(self, kept: Path, known: dict[str, str]) -> None:
        self.kept, self.known = kept, known

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the id down; the callback that began the run stands before this one."""
        import mlflow

        if active := mlflow.active_run():
            manifest.write_json(self.kept, self.known | {"mlflow": active.info.run_id})
