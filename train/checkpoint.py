"""Training checkpoints and model directories: safetensors and JSON only, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nuwaxl.errors import InputError, NuwaxlError, reason
from nuwaxl.formats import parse_json

_PREFIX = "step_"


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises NuwaxlError if there is no room for it."""
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path)
        path.chmod(mode)  # safetensors leaves a file that its owner alone can read
    except (OSError, SafetensorError) as error:
        raise NuwaxlError(
            f"writing {path} failed: {reason(error)}; make room on the disk, then start again, a training by --resume"
        ) from error


def load_weights(path: Path) -> dict[str, Tensor]:
    try:
        return {
            name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()
        }
    except (OSError, SafetensorError) as error:
        raise InputError(
            expected=f"safetensors weights at {path}", found=reason(error), fix="name another file"
        ) from error


def load_into(module: nn.Module, path: Path, may_lack: str | None = None, *, mapped: bool = False) -> None:
    """Load weights strictly; names that contain `may_lack` keep their initialisation where the file lacks them.

    With `mapped`, float32 weights stay in the file, which must not change meanwhile, and take no memory of their own.
    """
    weights, own = load_weights(path), module.state_dict()
    missing = [name for name in own if name not in weights and not (may_lack and may_lack in name)]
    extra = [name for name in weights if name not in own]
    shapes = [name for name in weights if name in own and own[name].shape != weights[name].shape]
    for kind, names in (("missing", missing), ("unknown", extra), ("of another shape", shapes)):
        if names:
            raise InputError(
                expected=f"the weights of this configuration in {path}",
                found=f"{len(names)} {kind}, first {names[0]}",
                fix="use the configuration they were trained with",
            )
    module.load_state_dict(weights, strict=False, assign=mapped)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `final` once it is written, and is gone if that fails or is stopped.

    It is beside it, under a hidden name: model.old may be a copy that somebody keeps.
    """
    partial, old = (final.with_name(f".{final.name}.{what}") for what in ("partial", "old"))
    for left in (partial, old):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if final.exists():
            final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)  # here, so that a stop meanwhile is cleaned up after as well
    finally:
        if old.exists() and not final.exists():
            old.rename(final)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """`whole_folder` for a folder that is not there yet. Raises InputError if it is, or cannot be made."""
    _check_absent(final)
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(whole_folder(final))
        except OSError as error:
            raise InputError(
                expected=f"a folder that can be made at {final}", found=reason(error), fix="name another"
            ) from error
        yield partial
        _check_absent(final)  # again: somebody may have made one meanwhile, which is not ours to replace


def _check_absent(folder: Path) -> None:
    if folder.exists():
        raise InputError(expected=f"no {folder} yet", found="one", fix="remove it or name another")


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder`."""
    found = sorted(folder.glob(f"{_PREFIX}*[0-9]"))
    return found[-1] if found else None


def save_training(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    ema: Mapping[str, Tensor],
    optimizers: Mapping[str, torch.optim.Optimizer],
    configuration: Mapping[str, Any],
    keep: int,
) -> None:
    """Write `step_NNNNNNNN/` with weights, their moving average and the optimisers' moments; drop all but `keep`."""
    with whole_folder(folder / f"{_PREFIX}{step:08d}") as partial:
        for name, module in modules.items():
            save_weights(module.state_dict(), partial / f"{name}.safetensors")
        save_weights(ema, partial / "ema.safetensors")
        for name, optimizer in optimizers.items():
            moments = {
                f"{index}.{key}": value
                for index, state in optimizer.state_dict()["state"].items()
                for key, value in state.items()
            }
            save_weights(moments, partial / f"{name}.safetensors")
        progress = {"step": step, "configuration": configuration}
        (partial / "training.json").write_text(json.dumps(progress, indent=1) + "\n", encoding="utf-8")
    try:
        _drop(folder, keep)
    finally:  # stopped: to its end all the same
        _drop(folder, keep, ignore_errors=True)


def _drop(folder: Path, keep: int, ignore_errors: bool = False) -> None:
    for old in sorted(folder.glob(f"{_PREFIX}*[0-9]"))[:-keep]:
        old.rename(old.with_name(f".{old.name}.old"))  # half a checkpoint must not look like one
    # What a kill left too, of any step: a resumed run may write its checkpoints at others.
    for left in (*folder.glob(f".{_PREFIX}*.old"), *folder.glob(f".{_PREFIX}*.partial")):
        shutil.rmtree(left, ignore_errors)


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """`step` and `configuration` of a checkpoint. Raises InputError if it does not say them."""
    path = checkpoint / "training.json"
    try:
        progress = parse_json(path.read_text(encoding="utf-8"))
        return {"step": int(progress["step"]), "configuration": dict(progress["configuration"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            expected=f"step and configuration in {path}",
            found=reason(error) if isinstance(error, OSError) else repr(error),
            fix=f"remove {checkpoint}: --resume then goes on from the checkpoint before it",
        ) from error


def load_training(
    checkpoint: Path,
    modules: Mapping[str, nn.Module],
    ema: dict[str, Tensor],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> int:
    """Restore what `save_training` wrote; returns the number of steps done.

    Raises InputError, naming the file, if one is damaged.
    """
    try:
        for name, module in modules.items():
            load_into(module, checkpoint / f"{name}.safetensors")
        for name, tensor in load_weights(checkpoint / "ema.safetensors").items():
            ema[name].copy_(tensor)
        for name, optimizer in optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for entry, tensor in load_weights(checkpoint / f"{name}.safetensors").items():
                index, key = entry.split(".", 1)
                state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except InputError as error:
        raise InputError(
            expected=error.expected,
            found=error.found,
            fix=f"remove {checkpoint}: --resume then goes on from the checkpoint before it",
        ) from error
    return int(read_progress(checkpoint)["step"])


def pack(model: Path, out: Path) -> int:
    """Copy a model directory with its weights in float16, for keeping; returns the bytes written.

    Raises InputError if `model` is none, or `out` is there already.
    """
    if not (model / "config.json").is_file():
        raise InputError(
            expected=f"a model directory at {model}", found="no config.json", fix="name OUT/model of a run"
        )
    with new_folder(out) as folder:
        for path in sorted(model.iterdir()):
            if path.suffix == ".safetensors":
                save_weights({name: tensor.half() for name, tensor in load_weights(path).items()}, folder / path.name)
            else:
                shutil.copyfile(path, folder / path.name)
    return sum(path.stat().st_size for path in out.iterdir())
