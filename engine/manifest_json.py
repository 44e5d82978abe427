"""Reading of manifest.json: plain JSON values in, a checked Manifest out."""

from dataclasses import fields
from typing import Any, TypeVar, cast

from nuwaxl.engine.bundle_schema import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_FILE,
    MAX_GUIDANCE,
    MIN_LENGTH,
    PRECISIONS,
    PREDICTIONS,
    SAMPLERS,
    SCHEDULES,
    TOKENIZER_FILE,
    Diffusion,
    FileEntry,
    Graph,
    Manifest,
    Network,
    Plan,
    PrecisionName,
    Sampler,
    TensorSpec,
    required_tensors,
)
from nuwaxl.engine.checks import finite_number, shown
from nuwaxl.errors import InputError
from nuwaxl.files import is_file_name

_REEXPORT = "export the bundle again with nuwaxl-export"

_Record = TypeVar("_Record", Network, Diffusion, Sampler, FileEntry)


def manifest_from_json(value: object, where: str) -> Manifest:
    """Check plain JSON values and make the manifest of them; `where` names the file in errors.

    Raises:
        InputError: not a bundle's manifest, a version this engine cannot read, or a key missing, unknown or
            wrong.
    """
    table = _table(value, where)
    if table.get("format") != FORMAT:
        raise _bad(f'"format": "{FORMAT}" in {where}', f'"format": {table.get("format")!r}', _REEXPORT)
    version = table.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise _bad(
            f"bundle format version {FORMAT_VERSION} or older in {where}",
            f"version {version}",
            "upgrade nuwaxl (pip install -U nuwaxl), or export the bundle again with this version",
        )
    if type(version) is not int or version < 1:
        raise _bad(f"bundle format version {FORMAT_VERSION} in {where}", f"{version!r}", _REEXPORT)
    table = {"plans": [], **table}  # the one key that may be missing
    _keys(table, {"format", "format_version", *(f.name for f in fields(Manifest))}, where)
    producer = _table(table["producer"], f"producer in {where}")
    manifest = Manifest(
        name=_string(table["name"], f"name in {where}"),
        producer={key: _string(item, f"producer.{key} in {where}") for key, item in producer.items()},
        precision=_precision(table["precision"], where),
        network=_network(_record(Network, table["network"], f"network in {where}"), where),
        diffusion=_diffusion(_record(Diffusion, table["diffusion"], f"diffusion in {where}"), where),
        sampler=_sampler(_record(Sampler, table["sampler"], f"sampler in {where}"), where),
        graphs={
            key: _graph(item, f"graphs.{key} in {where}")
            for key, item in _table(table["graphs"], f"graphs in {where}").items()
        },
        files={
            key: _file(key, item, f"files.{key} in {where}")
            for key, item in _table(table["files"], f"files in {where}").items()
        },
        plans=_plans(table["plans"], f"plans in {where}"),
    )
    check_graphs(manifest, where)
    check_plans(manifest, where)
    return manifest


def check_graphs(manifest: Manifest, where: str) -> None:
    """Refuse a manifest whose graphs lack a tensor, have it in another shape or type, or miss their file.

    Raises:
        InputError: naming the graph and the tensor.
    """
    for name, (inputs, outputs) in required_tensors(manifest.network).items():
        graph = manifest.graphs.get(name)
        if graph is None:
            raise _bad(f'a graph "{name}" in {where}', f"graphs {sorted(manifest.graphs)}", _REEXPORT)
        for kind, wanted, present in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
            by_name = {tensor.name: tensor for tensor in present}
            for tensor in wanted:
                found = by_name.get(tensor.name)
                if found != tensor:
                    said = f"{found.dtype} {list(found.shape)}" if found else f"only {sorted(by_name)}"
                    shape = list(tensor.shape)
                    raise _bad(
                        f'graph "{name}" with {kind} "{tensor.name}" {tensor.dtype} {shape} in {where}',
                        said,
                        _REEXPORT,
                    )
        for file in (graph.file, graph.data):
            if file is not None and file not in manifest.files:
                raise _bad(f"{file} among the files of {where}", f"{sorted(manifest.files)}", _REEXPORT)
    if TOKENIZER_FILE not in manifest.files:
        raise _bad(f"{TOKENIZER_FILE} among the files of {where}", f"{sorted(manifest.files)}", _REEXPORT)
    _check_state(manifest, where)


def _check_state(manifest: Manifest, where: str) -> None:
    """The outputs of prepare and the further inputs of step are the same tensors."""
    fixed = {tensor.name for tensor in required_tensors(manifest.network)["step"][0]}
    made = {tensor.name: tensor for tensor in manifest.graphs["prepare"].outputs}
    taken = {tensor.name: tensor for tensor in manifest.graphs["step"].inputs if tensor.name not in fixed}
    if made != taken:
        differing = sorted(name for name in made.keys() | taken.keys() if made.get(name) != taken.get(name))
        raise _bad(f"the outputs of prepare to be inputs of step in {where}", f"differing {differing}", _REEXPORT)


def check_plans(manifest: Manifest, where: str) -> None:
    """Refuse plans of graphs that there are none of, or without their file.

    Raises:
        InputError: naming the plan.
    """
    for plan in manifest.plans:
        if plan.graph not in manifest.graphs:
            raise _bad(f"plans of the graphs {sorted(manifest.graphs)} in {where}", repr(plan.graph), _REEXPORT)
        if plan.file not in manifest.files:
            raise _bad(f"{plan.file} among the files of {where}", f"{sorted(manifest.files)}", _REEXPORT)


def _bad(expected: str, found: str, fix: str) -> InputError:
    return InputError(expected=expected, found=found, fix=fix)


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(f"a JSON object for {where}", f"{type(value).__name__}", _REEXPORT)
    return cast(dict[str, Any], value)


def _keys(table: dict[str, Any], wanted: set[str], where: str) -> None:
    if table.keys() != wanted:
        missing, unknown = sorted(wanted - table.keys()), sorted(table.keys() - wanted)
        raise _bad(f"the keys {sorted(wanted)} in {where}", f"missing {missing}, unknown {unknown}", _REEXPORT)


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _bad(f"a string for {where}", repr(value), _REEXPORT)
    return value


def _record(kind: type[_Record], value: object, where: str) -> _Record:
    """Build a flat dataclass of int, float and string fields; the type of each field is taken from its
    annotation."""
    table = _table(value, where)
    wanted = fields(kind)
    _keys(table, {field.name for field in wanted}, where)
    values: dict[str, Any] = {}
    for field in wanted:
        item = table[field.name]
        if field.type is int:
            if type(item) is not int:
                raise _bad(f"a whole number for {field.name} of {where}", shown(item), _REEXPORT)
        elif field.type is float:
            item = finite_number(f"{field.name} of {where}", item, fix=_REEXPORT)
        else:
            _string(item, f"{field.name} of {where}")
        values[field.name] = item
    return kind(**values)


def _network(network: Network, where: str) -> Network:
    for field in fields(network):
        value, least = getattr(network, field.name), {"length": MIN_LENGTH, "decode_overlap": 0}.get(field.name, 1)
        if value < least:
            raise _bad(f"network.{field.name} of at least {least} in {where}", f"{value}", _REEXPORT)
    if 2 * network.decode_overlap >= network.length:
        found = f"overlap {network.decode_overlap} of {network.length} frames"
        raise _bad(f"a decode overlap below half of network.length in {where}", found, _REEXPORT)
    return network


def _diffusion(diffusion: Diffusion, where: str) -> Diffusion:
    _choice(diffusion.schedule, SCHEDULES, f"diffusion.schedule in {where}")
    _choice(diffusion.prediction, PREDICTIONS, f"diffusion.prediction in {where}")
    if diffusion.train_steps < 1 or not 0 < diffusion.beta_start <= diffusion.beta_end < 1:
        raise _bad(
            f"diffusion with train_steps >= 1 and 0 < beta_start <= beta_end < 1 in {where}",
            f"{diffusion.train_steps}, {diffusion.beta_start}, {diffusion.beta_end}",
            _REEXPORT,
        )
    if diffusion.schedule == "zero_terminal_snr" and diffusion.prediction == "eps":
        # Where x is all noise, the noise says nothing of x0.
        raise _bad(f"prediction v with the schedule zero_terminal_snr in {where}", "eps", _REEXPORT)
    if diffusion.schedule == "zero_terminal_snr" and diffusion.train_steps < 2:
        # The first abar stays and the last becomes 0, so they cannot be the same one.
        raise _bad(f"train_steps >= 2 with the schedule zero_terminal_snr in {where}", "1", _REEXPORT)
    return diffusion


def _sampler(sampler: Sampler, where: str) -> Sampler:
    _choice(sampler.name, SAMPLERS, f"sampler.name in {where}")
    if sampler.steps < 1 or sampler.depth < 1 or not 0 <= sampler.guidance <= MAX_GUIDANCE:
        wanted = f"sampler with steps >= 1, depth >= 1 and guidance from 0 to {MAX_GUIDANCE:g} in {where}"
        raise _bad(wanted, f"{sampler}", _REEXPORT)
    return sampler


def _precision(value: object, where: str) -> PrecisionName:
    name = _string(value, f"precision in {where}")
    _choice(name, PRECISIONS, f"precision in {where}")
    return cast(PrecisionName, name)


def _choice(value: str, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise _bad(f"one of {', '.join(choices)} for {where}", repr(value), _REEXPORT)


def _graph(value: object, where: str) -> Graph:
    table = _table(value, where)
    _keys(table, {"file", "data", "inputs", "outputs"}, where)
    return Graph(
        file=_string(table["file"], f"file of {where}"),
        data=None if table["data"] is None else _string(table["data"], f"data of {where}"),
        inputs=_tensors(table["inputs"], f"inputs of {where}"),
        outputs=_tensors(table["outputs"], f"outputs of {where}"),
    )


def _tensors(value: object, where: str) -> tuple[TensorSpec, ...]:
    if not isinstance(value, list | tuple):
        raise _bad(f"a list for {where}", type(value).__name__, _REEXPORT)
    specs = []
    for item in value:
        table = _table(item, where)
        _keys(table, {"name", "shape", "dtype"}, where)
        shape = table["shape"]
        if not isinstance(shape, list | tuple) or not all(type(size) in (int, str) for size in shape):
            raise _bad(f"a list of numbers and names for shape in {where}", repr(shape), _REEXPORT)
        name, dtype = _string(table["name"], where), _string(table["dtype"], where)
        specs.append(TensorSpec(name=name, shape=tuple(shape), dtype=dtype))
    return tuple(specs)


def _plans(value: object, where: str) -> tuple[Plan, ...]:
    if not isinstance(value, list | tuple):
        raise _bad(f"a list for {where}", type(value).__name__, _REEXPORT)
    plans = []
    for item in value:
        table = _table(item, where)
        _keys(table, {field.name for field in fields(Plan)}, where)
        values: dict[str, Any] = {}
        for field in fields(Plan):
            found = table[field.name]
            if field.type is str:
                values[field.name] = _string(found, f"{field.name} of {where}")
                continue
            kind = str if field.name in ("flags", "accepted_on") else int
            if not isinstance(found, list | tuple) or not all(type(each) is kind for each in found):
                raise _bad(f"a list of {kind.__name__} for {field.name} of {where}", repr(found), _REEXPORT)
            values[field.name] = tuple(found)
        plans.append(Plan(**values))
    return tuple(plans)


def _file(name: str, value: object, where: str) -> FileEntry:
    entry = _record(FileEntry, value, where)
    parts = name.split("/")
    if (
        not is_file_name(name)
        or "\\" in name
        or name == MANIFEST_FILE
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise _bad(f"names of files beside or below manifest.json for {where}", repr(name), _REEXPORT)
    if len(entry.sha256) != 64 or entry.bytes < 0:
        raise _bad(f"a sha256 of 64 digits and a size for {where}", f"{entry}", _REEXPORT)
    return entry
