"""A bundle on disk: opening one with its files verified, writing the manifest of a new one, the demo one."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from nuwaxl.engine.bundle_schema import (
    MANIFEST_FILE,
    TOKENIZER_FILE,
    Diffusion,
    FileEntry,
    Graph,
    Manifest,
    Network,
    Plan,
    PrecisionName,
    Sampler,
)
from nuwaxl.engine.manifest_json import check_graphs, check_plans, manifest_from_json
from nuwaxl.engine.plans import build_command
from nuwaxl.errors import InputError, reason
from nuwaxl.formats import parse_json

_EXPORT_HINT = "give the directory that nuwaxl-export wrote"


@dataclass(frozen=True)
class Bundle:
    """An exported model whose files are all present and unchanged; its plans may not be, see `plan`.

    `sha256` is the hash of manifest.json, which itself holds the hash of every other file.
    """

    path: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Bundle":
        """Read and verify a bundle directory: format, version, graphs, and size and sha256 of every file but plans.

        Raises:
            InputError: not a bundle, a newer format version, a missing file, or a changed byte.
        """
        folder = Path(path)
        manifest, sha256 = _read_manifest(folder)
        plans = {plan.file for plan in manifest.plans}
        for name, entry in manifest.files.items():
            if name not in plans:
                _verify(folder / name, entry, "copy or export the bundle again")
        return cls(path=folder, manifest=manifest, sha256=sha256)

    def file(self, graph: str) -> Path:
        """Path of a graph's ONNX file. Large weights lie beside it, in the file `Graph.data` names."""
        return self.path / self.manifest.graphs[graph].file

    def plan(self, plan: Plan) -> Path:
        """Path of a plan, whose file is verified now: who does not use it does without.

        Raises:
            InputError: it is missing, or has changed; with the command that builds it again.
        """
        path = self.path / plan.file
        _verify(path, self.manifest.files[plan.file], f"build it again: {build_command(plan, str(self.path))}")
        return path

    @property
    def tokenizer(self) -> Path:
        """Path of the tokenizer."""
        return self.path / TOKENIZER_FILE


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle, checked; the files it lists are not read.

    Raises:
        InputError: not a bundle, or a newer format version.
    """
    return _read_manifest(folder)[0]


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest and the sha256 of its file."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, never raises, whatever the name
        found = "a file" if os.path.exists(folder) else "nothing there"
        raise InputError(expected=f"a bundle directory at {folder}", found=found, fix=_EXPORT_HINT)
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(expected=f"a readable {path}", found=reason(error), fix=_EXPORT_HINT) from error
    try:
        value = parse_json(content)
    except ValueError as error:
        raise InputError(expected=f"JSON in {path}", found=str(error), fix="export the bundle again") from error
    return manifest_from_json(value, str(path)), hashlib.sha256(content).hexdigest()


def write_manifest(
    directory: str | os.PathLike[str],
    *,
    name: str,
    producer: Mapping[str, str],
    precision: PrecisionName,
    network: Network,
    diffusion: Diffusion,
    sampler: Sampler,
    graphs: Mapping[str, Graph],
) -> Manifest:
    """Write manifest.json over the files that lie in `directory`, each with its size and sha256.

    Raises:
        InputError: a graph or its file is missing, or has other tensors than a bundle of these sizes must
            have.
    """
    folder = Path(directory)
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST_FILE and not path.name.startswith(".")
    )
    manifest = Manifest(
        name=name,
        producer=dict(producer),
        precision=precision,
        network=network,
        diffusion=diffusion,
        sampler=sampler,
        graphs=dict(graphs),
        files={file: _entry(folder / file) for file in names},
    )
    check_graphs(manifest, str(folder))
    _replace_manifest(folder, manifest)
    return manifest


def write_plans(directory: str | os.PathLike[str], plans: Sequence[Plan]) -> Manifest:
    """Make these the plans of a bundle whose manifest is there; their files lie there already. Files of other plans are
    listed no longer, and the manifest changes in one moment.

    Raises:
        InputError: not a bundle, or a plan without its file or of no graph.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    dropped = {plan.file for plan in manifest.plans} - {plan.file for plan in plans}
    files = {name: entry for name, entry in manifest.files.items() if name not in dropped}
    for plan in plans:
        files[plan.file] = _entry(folder / plan.file)
    manifest = replace(manifest, files=files, plans=tuple(plans))
    check_plans(manifest, str(folder))
    _replace_manifest(folder, manifest)
    return manifest


def _replace_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json(), indent=1, sort_keys=True) + "\n"
    unfinished = folder / f".{MANIFEST_FILE}.part"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(folder / MANIFEST_FILE)


def _entry(path: Path) -> FileEntry:
    try:
        return FileEntry(_sha256(path), path.stat().st_size)
    except OSError as error:
        raise InputError(
            expected=f"a readable file {path}", found=reason(error), fix="build the plans again"
        ) from error


def demo_bundle() -> Path:
    """Directory of the demo bundle that ships in the package.

    Raises:
        InputError: this installation does not have it.
    """
    with ExitStack() as stack:
        # The package is installed as plain files, so the path outlives the context.
        path = stack.enter_context(resources.as_file(resources.files("nuwaxl.engine") / "demo"))
    if not (path / MANIFEST_FILE).is_file():
        raise InputError(
            expected=f"the demo bundle at {path}",
            found="nothing there",
            fix="reinstall nuwaxl from its wheel, or name another bundle",
        )
    return path


def _verify(path: Path, entry: FileEntry, fix: str) -> None:
    try:
        size = path.stat().st_size
        digest = _sha256(path) if size == entry.bytes else ""
    except OSError as error:
        raise InputError(
            expected=f"the bundle's file {path}",
            found=reason(error),
            fix=fix,
        ) from error
    if size != entry.bytes:
        raise InputError(
            expected=f"{entry.bytes} bytes in {path}",
            found=f"{size} bytes",
            fix=fix,
        )
    if digest != entry.sha256:
        raise InputError(
            expected=f"sha256 {entry.sha256[:12]}... of {path}",
            found=f"{digest[:12]}...: the file has changed",
            fix=fix,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
