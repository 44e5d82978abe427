"""The training loop both networks share: optimiser, moving average, log, checkpoints, resume.

All randomness of step n is a function of (seed, n), so a resumed run continues exactly where it stopped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nuwaxl.errors import InputError, NuwaxlError
from nuwaxl.train import checkpoint
from nuwaxl.train.distributed import Share
from nuwaxl.train.run import RunConfig


class TrainingError(NuwaxlError):
    """A training that cannot go on, such as one whose loss is no longer finite."""


class Task(Protocol):
    """What is trained: its modules by name (saved under it), the parameters that learn, and the loss of a step."""

    modules: dict[str, nn.Module]

    def parameters(self) -> list[nn.Parameter]: ...

    def loss(
        self, rng: np.random.Generator, generator: torch.Generator, share: Share
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of this process's share of one batch and figures to log; all randomness comes from the generators."""
        ...

    def publish(self, weights: dict[str, dict[str, Tensor]], folder: Path) -> None:
        """Write what the next stage reads, from the averaged weights of each module."""
        ...


class Averages:
    """Exponential moving average of the modules' floating-point state, names prefixed by the module's."""

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.modules = modules
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in self._state().items()}

    def _state(self) -> dict[str, Tensor]:
        return {
            f"{prefix}/{name}": tensor
            for prefix, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        # Early on the average follows quickly, or the initialisation would stay in it for long.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self._state().items():
            self.values[name].lerp_(tensor, 1 - decay)

    def by_module(self) -> dict[str, dict[str, Tensor]]:
        result: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in self.modules}
        for name, tensor in self.values.items():
            prefix, key = name.split("/", 1)
            result[prefix][key] = tensor
        return result


def train(task: Task, run: RunConfig, resume: bool, show_progress: bool) -> Path:
    """Train to `run.steps`; writes log.jsonl, step_*/ and model/ below `run.out`. Returns the path of model/."""
    share = Share.join(run.batch_size, run.torch_device())
    out = Path(run.out)
    previous = check_output(out, resume)
    parameters = task.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=run.learning_rate, weight_decay=run.weight_decay, betas=(0.9, 0.99))
    averages = Averages(task.modules, run.ema_decay)
    start = checkpoint.load_training(previous, task.modules, averages.values, optimizer) if previous else 0
    if start > run.steps:
        raise InputError(
            expected=f"at least {start} steps to resume {previous}", found=str(run.steps), fix="give more --steps"
        )
    device = run.torch_device()
    if share.leads:
        _forget_after(out / "log.jsonl", start)

    began = time.monotonic()
    show_progress = show_progress and share.leads
    with (out / "log.jsonl" if share.leads else Path(os.devnull)).open("a", encoding="utf-8") as log:
        bar = tqdm(range(start, run.steps), initial=start, total=run.steps, disable=None if show_progress else True)
        recent: dict[str, list[float]] = {}
        for step in bar:
            rng = np.random.default_rng([run.seed, step])
            generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
            for group in optimizer.param_groups:
                group["lr"] = run.rate_at(step)
            loss, figures = task.loss(rng, generator, share)
            _check_finite("loss", float(loss.detach()), step, out)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            share.average_gradients(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, run.clip)
            _check_finite("gradient", float(norm), step, out)
            optimizer.step()
            averages.update(step)
            for name, value in {**share.average(figures), "grad_norm": float(norm)}.items():
                recent.setdefault(name, []).append(value)
            if (step + 1) % run.log_every == 0:
                means = {name: sum(values) / len(values) for name, values in recent.items()}
                recent = {}
                line = {"step": step + 1, **means, "rate": run.rate_at(step), "seconds": time.monotonic() - began}
                log.write(json.dumps({k: float(f"{v:.6g}") for k, v in line.items()}) + "\n")
                log.flush()
                bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
            if share.leads and ((step + 1) % run.checkpoint_every == 0 or step + 1 == run.steps):
                checkpoint.save_training(out, step + 1, task.modules, averages.values, optimizer, run.keep_checkpoints)
                _publish(task, averages, out)
    if share.leads and start == run.steps:  # resumed after the last step: the model may not have been written
        _publish(task, averages, out)
    share.wait()
    return out / "model"


def check_output(out: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, if any. Raises InputError if there is one and `resume` was not asked for."""
    previous = checkpoint.latest(out)
    if previous is not None and not resume:
        raise InputError(
            expected=f"no earlier training in {out}",
            found=previous.name,
            fix="go on with it by --resume, or name another folder by --out",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            expected=f"a writable output folder {out}", found=error.strerror or str(error), fix="name another by --out"
        ) from error
    return previous


def _check_finite(what: str, value: float, step: int, out: Path) -> None:
    if not math.isfinite(value):
        last = checkpoint.latest(out)
        raise TrainingError(
            f"expected a finite {what}; found {value} at step {step}; "
            f"lower the learning rate and resume from {last if last else 'the start'}"
        )


def _forget_after(log: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
        partial = log.with_suffix(".partial")
        partial.write_text(kept, encoding="utf-8")
        partial.replace(log)


def _publish(task: Task, averages: Averages, out: Path) -> None:
    """Write model/ whole or not at all."""
    partial, final = out / "model.partial", out / "model"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    task.publish(averages.by_module(), partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
