"""The folder of a bundle's plans while they are built: for one process at a time, and tidy in the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nuwaxl.engine.bundle import read_manifest
from nuwaxl.engine.plans import PLANS_FOLDER
from nuwaxl.errors import InputError, reason
from nuwaxl.files import alone_in


@contextmanager
def plans_folder(folder: Path) -> Iterator[None]:
    """The folder of the plans of the bundle in `folder`; in the end it holds what the manifest lists and nothing else,
    and is gone if empty.

    Raises:
        InputError: not a bundle, it cannot be written, or another process builds plans of it.
    """
    read_manifest(folder)  # before anything is made there
    with alone_in(
        folder,
        expected=f"nobody else to build plans of {folder}",
        found="another nuwaxl-export at it",
        fix="run this again once that has ended",
    ):
        plans = folder / PLANS_FOLDER
        try:
            plans.mkdir(exist_ok=True)
            if not os.access(plans, os.W_OK):
                raise PermissionError(13, "no permission to write")
        except OSError as error:
            raise InputError(
                expected=f"a folder {plans} that can be written",
                found=reason(error),
                fix="copy the bundle",
            ) from error
        try:
            yield
        finally:
            listed = {plan.file for plan in read_manifest(folder).plans}
            for path in plans.iterdir():
                if path.is_file() and f"{PLANS_FOLDER}/{path.name}" not in listed:
                    path.unlink()
            if not any(plans.iterdir()):
                plans.rmdir()
