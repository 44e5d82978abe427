"""The committed checkpoint is the one the shipped bundle was made of, and can be exported again."""

from pathlib import Path

import pytest

from nuwaxl.engine.bundle import Bundle, demo_bundle
from nuwaxl.export.model import load_model

CHECKPOINT = Path(__file__).parents[2] / "train" / "demo" / "checkpoint"


def test_it_loads_and_has_the_sizes_and_the_tokenizer_of_the_demo_bundle() -> None:
    model, bundle = load_model(CHECKPOINT), Bundle.open(demo_bundle())
    assert model.network(bundle.manifest.network.decode_overlap) == bundle.manifest.network
    assert model.tokenizer == bundle.tokenizer.read_bytes()
    assert model.config.sampler.steps == bundle.manifest.sampler.steps


@pytest.mark.slow
def test_exporting_it_again_gives_the_shipped_bundle(tmp_path: Path) -> None:
    from nuwaxl.export.cli import main

    assert main([str(CHECKPOINT), str(tmp_path / "demo"), "--name", "demo"]) == 0
    for shipped in sorted(demo_bundle().glob("*.onnx")):
        assert (tmp_path / "demo" / shipped.name).read_bytes() == shipped.read_bytes(), shipped.name
