"""The training loop both networks share: steps, moving average, log, checkpoints, resume.

All randomness of step n is a function of (seed, n), so a resumed run continues exactly where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from nuwaxl.errors import InputError, reason
from nuwaxl.files import alone_in
from nuwaxl.train import checkpoint
from nuwaxl.train.averages import Averages
from nuwaxl.train.distributed import Processes
from nuwaxl.train.log import TrainingLog, check_tensorboard
from nuwaxl.train.progress import Progress, note
from nuwaxl.train.resume import check_unchanged
from nuwaxl.train.run import RunConfig
from nuwaxl.train.task import Task
from nuwaxl.train.update import Update


def train(task: Task, run: RunConfig, resume: bool, show_progress: bool) -> Path:
    """Train to `run.steps`; writes log.jsonl, step_*/ and model/ below `run.out`. Returns the path of model/."""
    processes = Processes.join(run)
    check_output(run, resume)
    with contextlib.ExitStack() as stack:
        if processes.leads:
            out = Path(run.out)
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                alone_in(
                    out,
                    expected=f"no other training that writes to {out}",
                    found="one that runs",
                    fix="wait for it or stop it, or name another folder by --out",
                )
            )
        previous = check_output(run, resume)  # again: another training may have ended before the lock was ours
        return _train(task, run, processes, previous, show_progress)


def _train(task: Task, run: RunConfig, processes: Processes, previous: Path | None, show_progress: bool) -> Path:
    out = Path(run.out)
    configuration: dict[str, Any] = {"run": dataclasses.asdict(run), **task.configuration()}
    update = Update(task, run, processes)
    averages = Averages(task.modules, run.ema_decay)
    saved = dict(task.modules)
    if task.game is not None:
        saved["discriminator"] = task.game.discriminator
    start = 0
    if previous is not None:
        check_unchanged(previous, configuration)
        start = checkpoint.load_training(previous, saved, averages.values, update.optimizers)

    began = time.monotonic()
    show_progress = show_progress and processes.leads
    if show_progress:
        note(_beginning(task, run, processes, start))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(TrainingLog(out, start, run.tensorboard)) if processes.leads else None
        progress = stack.enter_context(Progress("step", run.steps, show_progress, start))
        recent: dict[str, list[float]] = {}
        means: dict[str, float] = {}
        for step in range(start, run.steps):
            figures = update(step)
            averages.update(step)
            for name, values in figures.items():
                recent.setdefault(name, []).extend(values)
            done = step + 1
            if done % run.log_every == 0:
                means = processes.means(recent)
                recent = {}
                if log is not None:
                    log.write({"step": done, **means, "rate": run.rate_at(step), "seconds": time.monotonic() - began})
            progress.advance(figures=means or {name: sum(values) / len(values) for name, values in figures.items()})
            if processes.leads and (done % run.checkpoint_every == 0 or done == run.steps):
                checkpoint.save_training(
                    out, done, saved, averages.values, update.optimizers, configuration, run.keep_checkpoints
                )
                _publish(task, averages, out)
    if processes.leads and start == run.steps:  # resumed after the last step: the model may not have been written
        _publish(task, averages, out)
    processes.wait()
    return out / "model"


def _beginning(task: Task, run: RunConfig, processes: Processes, start: int) -> str:
    """What is trained, where, and what comes first: the first step of a large network takes minutes."""
    if start >= run.steps:
        return f"all {run.steps} steps are done"
    own = [parameter for module in task.modules.values() for parameter in module.parameters()]
    learning = sum(parameter.numel() for parameter in own if parameter.requires_grad)
    where = f"on {processes.device}" + (f" and {processes.world - 1} more" if processes.world > 1 else "")
    return (
        f"{' and '.join(task.modules)} {where}: {sum(parameter.numel() for parameter in own):,} parameters, "
        f"{learning:,} of them learn; step {start + 1} of {run.steps} begins; the log is {Path(run.out) / 'log.jsonl'}"
    )


def check_output(run: RunConfig, resume: bool) -> Path | None:
    """The checkpoint to go on from, if any.

    Raises InputError if there is one and `resume` was not asked for, if [run] is not what it was written with, or if
    the output cannot be written.
    """
    out = Path(run.out)
    previous = checkpoint.latest(out)
    if previous is not None and not resume:
        raise InputError(
            expected=f"no earlier training in {out}",
            found=previous.name,
            fix="go on with it by --resume, or name another folder by --out",
        )
    if previous is not None:
        check_unchanged(previous, {"run": dataclasses.asdict(run)})
    if run.tensorboard:
        check_tensorboard()
    if os.environ.get("RANK", "0") != "0":  # a launcher's other process: it must not remove what the leader makes
        return previous
    made = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            expected=f"a writable output folder {out}", found=reason(error), fix="name another by --out"
        ) from error
    with contextlib.suppress(OSError):  # another training may use it already
        for folder in made:  # nothing is left of a training that is refused later
            folder.rmdir()
    return previous


def _publish(task: Task, averages: Averages, out: Path) -> None:
    with checkpoint.whole_folder(out / "model") as partial:
        task.publish(averages.by_module(), partial)
