"""A bundle opens only if every byte is the one that was exported."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from nuwaxl.engine.bundle import Bundle, write_manifest
from nuwaxl.errors import InputError


def edit(bundle: Path, **changes: object) -> None:
    """Change top-level keys of the manifest."""
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(bundle: Path) -> str:
    """The message with which a bundle is refused."""
    with pytest.raises(InputError) as caught:
        Bundle.open(bundle)
    return str(caught.value)


def test_what_was_written_is_read_back_and_the_bundle_hash_is_that_of_the_manifest(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    content = (tiny_bundle / "manifest.json").read_bytes()
    assert bundle.sha256 == hashlib.sha256(content).hexdigest()
    assert json.dumps(bundle.manifest.to_json(), indent=1, sort_keys=True) + "\n" == content.decode()
    assert set(bundle.manifest.files) == {path.name for path in tiny_bundle.iterdir()} - {"manifest.json"}
    assert bundle.file("step").is_file()


def test_a_missing_directory_and_a_file_in_its_place_are_refused(tmp_path: Path) -> None:
    assert "nothing there" in refusal(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "a file" in refusal(tmp_path / "file")


def test_a_directory_without_manifest_is_refused(tmp_path: Path) -> None:
    assert "manifest.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_manifest_that_is_no_json_object_is_refused(own_bundle: Path, content: str) -> None:
    (own_bundle / "manifest.json").write_text(content)
    assert "manifest.json" in refusal(own_bundle)


@pytest.mark.parametrize("name", ["step.onnx", "tokenizer.json", "encode.onnx"])
def test_a_missing_file_is_named(own_bundle: Path, name: str) -> None:
    (own_bundle / name).unlink()
    assert name in refusal(own_bundle)


@pytest.mark.parametrize("name", ["decode.onnx", "tokenizer.json"])
def test_one_changed_byte_is_found(own_bundle: Path, name: str) -> None:
    content = bytearray((own_bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (own_bundle / name).write_bytes(content)
    message = refusal(own_bundle)
    assert name in message
    assert "changed" in message


def test_a_file_of_another_size_is_found(own_bundle: Path) -> None:
    with (own_bundle / "text.onnx").open("ab") as file:
        file.write(b"x")
    assert "text.onnx" in refusal(own_bundle)


def test_a_newer_format_version_says_to_upgrade(own_bundle: Path) -> None:
    edit(own_bundle, format_version=2, something_new=True)
    message = refusal(own_bundle)
    assert "found version 2" in message
    assert "upgrade" in message


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None])
def test_a_version_that_is_none_is_refused(own_bundle: Path, version: object) -> None:
    edit(own_bundle, format_version=version)
    assert "format version" in refusal(own_bundle)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "zip"}, "nuwaxl-bundle"),
        ({"surprise": 1}, "surprise"),
        ({"name": 3}, "name"),
        ({"sampler": {"name": "euler", "steps": 5, "guidance": 1.0, "depth": 1}}, "'euler'"),
        ({"sampler": {"name": "ddim", "steps": 0, "guidance": 1.0, "depth": 1}}, "steps"),
        ({"sampler": {"name": "ddim", "steps": True, "guidance": 1.0, "depth": 1}}, "steps"),
        ({"sampler": {"name": "ddim", "steps": 5, "depth": 1}}, "guidance"),
        ({"sampler": {"name": "ddim", "steps": 5, "guidance": 1.0}}, "depth"),
        ({"sampler": {"name": "ddim", "steps": 5, "guidance": 1.0, "depth": 0}}, "depth >= 1"),
        ({"sampler": {"name": "ddim", "steps": 5, "guidance": 1e300, "depth": 1}}, "guidance from 0 to 1000"),
        (
            {
                "diffusion": {
                    "train_steps": 1,
                    "schedule": "zero_terminal_snr",
                    "beta_start": 0.00085,
                    "beta_end": 0.012,
                    "prediction": "v",
                }
            },
            "train_steps >= 2",
        ),
        ({"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "etc/passwd"),
        ({"files": {}}, "text.onnx"),
        ({"graphs": {}}, "text"),
        ({"graphs": []}, "graphs"),
        ({"files": {"a\0b": {"sha256": "0" * 64, "bytes": 1}}}, "names of files"),
        ({"files": {"half a pair: \ud800": {"sha256": "0" * 64, "bytes": 1}}}, "names of files"),
        ({"sampler": {"name": "ddim", "steps": 5, "guidance": 10**400, "depth": 1}}, "a finite number"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(own_bundle: Path, changes: dict[str, object], said: str) -> None:
    edit(own_bundle, **changes)
    assert said in refusal(own_bundle)


def graphs_of(bundle: Path) -> dict[str, dict[str, list[dict[str, object]]]]:
    """The graphs in the manifest, to be changed."""
    graphs: dict[str, dict[str, list[dict[str, object]]]] = json.loads((bundle / "manifest.json").read_text())["graphs"]
    return graphs


def test_a_graph_without_a_required_tensor_is_refused(own_bundle: Path) -> None:
    graphs = graphs_of(own_bundle)
    graphs["step"]["inputs"] = [t for t in graphs["step"]["inputs"] if t["name"] != "guidance"]
    edit(own_bundle, graphs=graphs)
    assert '"guidance"' in refusal(own_bundle)


def test_a_tensor_of_another_shape_is_refused(own_bundle: Path) -> None:
    graphs = graphs_of(own_bundle)
    graphs["decode"]["outputs"][0]["shape"] = ["batch", 4, 16, 8, 3]
    edit(own_bundle, graphs=graphs)
    message = refusal(own_bundle)
    assert "[batch, 4, 16, 8, 3]" in message.replace("'", "")


def test_a_state_tensor_that_only_prepare_knows_is_refused(own_bundle: Path) -> None:
    graphs = graphs_of(own_bundle)
    graphs["prepare"]["outputs"].append({"name": "lost", "shape": ["batch", 1], "dtype": "float32"})
    edit(own_bundle, graphs=graphs)
    assert "lost" in refusal(own_bundle)


def test_write_manifest_refuses_to_describe_a_file_that_is_not_there(own_bundle: Path) -> None:
    manifest = Bundle.open(own_bundle).manifest
    (own_bundle / "step.onnx").unlink()
    with pytest.raises(InputError, match=r"step\.onnx"):
        write_manifest(
            own_bundle,
            name=manifest.name,
            producer=manifest.producer,
            precision=manifest.precision,
            network=manifest.network,
            diffusion=manifest.diffusion,
            sampler=manifest.sampler,
            graphs=manifest.graphs,
        )


def test_a_name_longer_than_the_file_system_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a bundle directory"):
        Bundle.open(tmp_path / ("a" * 300))


def test_a_file_of_data_is_verified_as_the_others_are(own_bundle: Path) -> None:
    manifest = Bundle.open(own_bundle).manifest
    data = own_bundle / "step.data"

    def say(name: str) -> None:
        step = replace(manifest.graphs["step"], data=name)
        write_manifest(
            own_bundle,
            name=manifest.name,
            producer=manifest.producer,
            precision=manifest.precision,
            network=manifest.network,
            diffusion=manifest.diffusion,
            sampler=manifest.sampler,
            graphs={**manifest.graphs, "step": step},
        )

    with pytest.raises(InputError, match=r"step\.data among the files"):
        say("step.data")
    data.write_bytes(b"weights")
    say("step.data")
    assert Bundle.open(own_bundle).manifest.graphs["step"].data == "step.data"
    data.write_bytes(b"Weights")
    assert "step.data; found" in refusal(own_bundle).replace("...", "")
    data.unlink()
    assert "step.data" in refusal(own_bundle)
    graphs = graphs_of(own_bundle)
    graphs["step"]["data"] = "../step.data"  # type: ignore[assignment]
    edit(own_bundle, graphs=graphs)
    assert "../step.data among the files" in refusal(own_bundle)


@pytest.mark.parametrize("value", ["fp8", 16, None])
def test_a_precision_that_is_none_is_refused(own_bundle: Path, value: object) -> None:
    edit(own_bundle, precision=value)
    assert "precision" in refusal(own_bundle)
