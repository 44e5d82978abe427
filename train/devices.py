"""The torch device that a name means."""

from __future__ import annotations

import torch

from nuwaxl.errors import InputError


def torch_device(name: str, where: str) -> torch.device:
    """The device of this name; "auto" is a GPU where torch sees one. `where` names the option in errors.

    Raises InputError for a name that torch does not know, and for a device that it does not see.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            expected="a device such as auto, cpu or cuda", found=repr(name), fix=f"change {where}"
        ) from error
    if device.type == "cpu":
        return device
    seen = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if seen is not None and seen.type == device.type else 0
    if (device.index or 0) >= count:
        found = f"{count} that torch sees" if count else "none that torch sees"
        raise InputError(expected=f"the device {name}", found=found, fix=f'use "cpu" for {where}')
    return device
