"""One optimiser step: losses and gradients of the batch's parts, averaged over processes, checked, clipped, applied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nuwaxl.errors import NuwaxlError
from nuwaxl.train import checkpoint
from nuwaxl.train.distributed import Processes, Share
from nuwaxl.train.run import RunConfig
from nuwaxl.train.task import Game, Objective, Task

_MOST_FILES = 12  # named in an error


class TrainingError(NuwaxlError):
    """A training that cannot go on, such as one whose loss is no longer finite."""


class Update:
    """The optimisers of a task, and the step they take together.

    A step's randomness is a function of (seed, step), and each part of the batch draws the whole of it and takes its
    share: neither a resumed run nor another number of processes or parts sees other data.
    """

    def __init__(self, task: Task, run: RunConfig, processes: Processes) -> None:
        self.task, self.run, self.processes = task, run, processes
        self.parameters = task.parameters()
        self.optimizers = {
            "optimizer": torch.optim.AdamW(
                self.parameters, lr=run.learning_rate, weight_decay=run.weight_decay, betas=(0.9, 0.99)
            )
        }
        self.opponent: list[nn.Parameter] = []
        if task.game is not None:
            self.opponent = list(task.game.discriminator.parameters())
            self.optimizers["discriminator_optimizer"] = torch.optim.AdamW(
                self.opponent, lr=run.learning_rate, weight_decay=0.0, betas=(0.5, 0.9)
            )

    def __call__(self, step: int) -> dict[str, list[float]]:
        """Take 0-based step `step`; returns this process's figures. Raises TrainingError if it finds no finite one."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = self.run.rate_at(step)
        figures: dict[str, list[float]] = {}
        losses: list[Tensor] = []
        adversarial: list[Tensor] = []
        parts = self.processes.parts(self.run.accumulation)
        for part in parts:
            rng = self._rng(step)
            generator = torch.Generator(self.processes.device).manual_seed(int(rng.integers(2**62)))
            with self.run.autocast(self.processes.device):
                objective = self.task.loss(rng, generator, part, step)
            losses.append(_total(objective))
            self._backward(objective, len(parts), adversarial)
            for name, value in objective.figures.items():
                figures.setdefault(name, []).extend(value if isinstance(value, list) else [value])
        self._check_losses(torch.stack(losses), step)

        self.processes.average(p.grad for p in [*self.parameters, *self.opponent] if p.grad is not None)
        if adversarial and self.task.game is not None:
            self.processes.average(adversarial)
            weight = add_adversarial(self.task.game, self.parameters, adversarial)
            figures["adversarial_weight"] = [weight]
        figures["grad_norm"] = [self._clip(self.parameters, step)]
        if any(parameter.grad is not None for parameter in self.opponent):
            figures["discriminator_grad_norm"] = [self._clip(self.opponent, step)]
        for optimizer in self.optimizers.values():
            optimizer.step()
        return figures

    def _rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.run.seed, step])

    def _backward(self, objective: Objective, parts: int, adversarial: list[Tensor]) -> None:
        """Add the gradients of one of `parts` parts; those of the adversarial term go to `adversarial`.

        They are kept apart, at the price of a second backward pass, because their weight is known only when the
        gradients of the whole batch are.
        """
        (objective.loss / parts).backward(retain_graph=objective.adversarial is not None)
        if objective.adversarial is not None:
            found = torch.autograd.grad(objective.adversarial / parts, self.parameters, materialize_grads=True)
            if adversarial:
                torch._foreach_add_(adversarial, found)
            else:
                adversarial += found
        if objective.discriminator is not None:
            (objective.discriminator / parts).backward()

    def _clip(self, parameters: list[nn.Parameter], step: int) -> float:
        norm = float(nn.utils.clip_grad_norm_(parameters, self.run.clip))
        if not np.isfinite(norm):
            raise self._error("gradient", norm, step, [Share()])
        return norm

    def _check_losses(self, losses: Tensor, step: int) -> None:
        """`losses` (parts,) of this process; all processes raise if one must, so that none waits for it."""
        everywhere = self.processes.gather(losses).tolist()
        bad = [index for index, loss in enumerate(everywhere) if not np.isfinite(loss)]
        if bad:
            shares = [Share(index, len(everywhere)) for index in bad]
            raise self._error("loss", everywhere[bad[0]], step, shares)

    def _error(self, what: str, value: float, step: int, shares: list[Share]) -> TrainingError:
        files: list[str] = []
        for share in shares:
            rng = self._rng(step)
            rng.integers(2**62)  # the generator's seed, which `loss` finds drawn
            files += self.task.files(rng, share)
        named = ", ".join(files[:_MOST_FILES])
        more = f" and {len(files) - _MOST_FILES} more" if len(files) > _MOST_FILES else ""
        last = checkpoint.latest(Path(self.run.out))
        return TrainingError(
            f"expected a finite {what}; found {value} at step {step}, learning from {named}{more}; look at these "
            "files or lower the learning rate, then go on from the last good checkpoint, "
            f"{last or 'which is none yet'}"
        )


def _total(objective: Objective) -> Tensor:
    terms = (objective.loss, objective.adversarial, objective.discriminator)
    return torch.stack([term.detach().float() for term in terms if term is not None]).sum()


def add_adversarial(game: Game, parameters: list[nn.Parameter], adversarial: list[Tensor]) -> float:
    """Add the adversarial term's gradients to those of the other terms, weighed; returns the weight.

    It is weight * |g| / (|g_adversarial| + 1e-4) for the gradients g at the last layer, the fraction at most 1e4 (as in
    latent diffusion).
    """
    place = next(i for i, parameter in enumerate(parameters) if parameter is game.last_layer)
    own = parameters[place].grad
    assert own is not None
    weight = game.weight * (own.norm() / (adversarial[place].norm() + 1e-4)).clamp(max=1e4)
    for parameter, gradient in zip(parameters, adversarial, strict=True):
        weighed = weight * gradient
        parameter.grad = weighed if parameter.grad is None else parameter.grad.add_(weighed)
    return float(weight)
