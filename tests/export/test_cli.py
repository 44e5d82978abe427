"""nuwaxl-export refuses what it cannot export with one line, and leaves nothing half-written."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from nuwaxl import terminal  # noqa: E402
from nuwaxl.export import write  # noqa: E402
from nuwaxl.export.cli import main  # noqa: E402
from nuwaxl.export.onnx import to_onnx  # noqa: E402
from nuwaxl.export.parity import ParityError  # noqa: E402

from .conftest import edit_config  # noqa: E402


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command; it must exit with the status, print one line on stderr and leave `out` as it was."""
    monkeypatch.setattr(terminal, "_FIRST_S", math.inf)  # a busy machine takes long for a small graph

    def run(checkpoint: Path, *options: str, out: Path = tmp_path / "out", status: int = 2) -> str:
        before = sorted(out.parent.rglob("*"))
        assert main([str(checkpoint), str(out), *options]) == status
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert sorted(out.parent.rglob("*")) == before
        return error

    return run


def test_a_checkpoint_that_is_not_there_is_named(refused, tmp_path: Path) -> None:
    assert f"expected a model directory at {tmp_path / 'absent'}; found nothing" in refused(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["config.json", "mtd.safetensors", "tklvae.safetensors", "text.safetensors", "tokenizer.json"]
)
def test_a_missing_file_is_named(refused, own_checkpoint: Path, name: str) -> None:
    (own_checkpoint / name).unlink()
    assert name in refused(own_checkpoint)


@pytest.mark.parametrize("name", ["config.json", "mtd.safetensors", "tokenizer.json"])
def test_a_file_cut_short_is_named(refused, own_checkpoint: Path, name: str) -> None:
    path = own_checkpoint / name
    path.write_bytes(path.read_bytes()[:100])
    assert name in refused(own_checkpoint)


def test_weights_of_another_shape_name_the_tensor(refused, own_checkpoint: Path) -> None:
    path = own_checkpoint / "mtd.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.zeros(9, 2, 3, 3)
    save_file(weights, path)
    assert "conv_in.weight" in refused(own_checkpoint)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [("tklvae", "latent_channels", 5), ("text", "tokens", 7), ("text", "dim", 6), ("tklvae", "channels", 1)],
)
def test_networks_that_do_not_fit_each_other_are_refused(
    refused, own_checkpoint: Path, table: str, key: str, value: int
) -> None:
    edit_config(own_checkpoint, table, **{key: value})
    assert f"{table}.{key}" in refused(own_checkpoint)


def test_a_tokenizer_larger_than_the_text_encoder_is_refused(refused, own_checkpoint: Path) -> None:
    edit_config(own_checkpoint, "text", vocabulary=10)
    assert "at most 10 entries" in refused(own_checkpoint)


def test_an_output_that_holds_files_is_left_alone(refused, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("mine")
    assert "--force" in refused(checkpoint, out=out)
    assert "without manifest.json" in refused(checkpoint, "--force", out=out), "only a bundle may be replaced"
    assert "a file" in refused(checkpoint, "--force", out=out / "mine.txt")


def test_an_output_that_cannot_be_made_is_refused(refused, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "writable place" in refused(checkpoint, out=tmp_path / "file" / "out")
    assert "writable place" in refused(checkpoint, out=tmp_path / ("a" * 300))


def test_options_that_do_not_fit_the_model_are_refused(refused, checkpoint: Path) -> None:
    assert "below half of the 4 frames" in refused(checkpoint, "--decode-overlap", "2")
    assert "at most 100 sampler steps" in refused(checkpoint, "--steps", "101")
    assert "guidance scale from 0 to 1000; found 1001;" in refused(checkpoint, "--guidance", "1001")


def test_a_model_of_segments_that_no_tree_is_made_of_is_refused(refused, own_checkpoint: Path) -> None:
    edit_config(own_checkpoint, "mtd", length=2)
    assert "segments of at least 3 frames: a bundle renders trees; found mtd.length = 2" in refused(own_checkpoint)


@pytest.mark.parametrize("options", [["--steps", "0"], ["--guidance", "nan"], ["--sampler", "euler"], ["--x"]])
def test_bad_options_exit_with_status_2(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["checkpoint", "out", *options])
    assert caught.value.code == 2
    assert "nuwaxl-export --help" in capsys.readouterr().err


def test_a_graph_that_differs_from_torch_is_named_and_nothing_is_written(
    refused, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotaged(*arguments: object, **options: object) -> onnx.ModelProto:
        model = to_onnx(*arguments, **options)
        weight = max(
            (t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT), key=lambda t: np.prod(t.dims)
        )
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return model

    monkeypatch.setattr(write, "to_onnx", sabotaged)
    error = refused(checkpoint, status=1)
    assert "graph text, output prompt, batch 1: relative error" in error
    assert "the limit is 1e-04" in error


def test_a_failed_export_leaves_the_old_bundle_as_it_was(
    refused, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text("old")

    def fails(*_: object, **__: object) -> None:
        raise ParityError("graph text: differs")

    monkeypatch.setattr(write, "to_onnx", fails)
    refused(checkpoint, "--force", status=1)
    assert (out / "manifest.json").read_text() == "old"


def test_a_finished_bundle_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    (tmp_path / "out.old").mkdir()  # somebody's own
    with write._whole_or_nothing(out) as folder:
        (folder / "new").touch()
        assert (out / "old").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "out",
        "out/new",
        "out.old",
    ]


def test_a_bundle_may_be_written_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with write._whole_or_nothing(Path()) as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["new"]
