"""Two processes that share each batch learn what one process learns from the whole of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.cli import main
from nuwaxl.train.distributed import Share

CONFIG = """
[run]
data = "{data}"
out = "{out}"
steps = 3
batch_size = 4
learning_rate = 1e-3
warmup = 1
log_every = 1
checkpoint_every = 3
device = "cpu"

[training]
frames = 3
calibration_batches = 1

[tklvae]
latent_channels = 2
block_channels = [8, 8]
layers_per_block = 1
norm_groups = 4
temporal_heads = 2
"""


def test_two_processes_equal_one(cartoons: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(CONFIG.format(data=cartoons, out=tmp_path / name))
    assert main(["tklvae", str(tmp_path / "one.toml")]) == 0

    script = tmp_path / "start.py"
    script.write_text("import sys\nfrom nuwaxl.train.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, "tklvae", str(tmp_path / "two.toml")], check=True, env=environment, timeout=300)

    one, two = (checkpoint.load_weights(tmp_path / n / "step_00000003" / "tklvae.safetensors") for n in ("one", "two"))
    unmoved = torch.nn.init.dirac_(torch.empty_like(one["encoder.temporal_in.weight"]))
    assert not torch.equal(one["encoder.temporal_in.weight"], unmoved)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    first, second = ((tmp_path / n / "log.jsonl").read_text().splitlines() for n in ("one", "two"))
    assert len(first) == len(second) == 3
    assert json.loads(first[0])["l1"] == pytest.approx(json.loads(second[0])["l1"], rel=1e-4)


def test_shares_cover_the_batch_once() -> None:
    batch = list(range(6))
    parts = [list(Share(rank, 3).of(batch)) for rank in range(3)]
    assert sorted(number for part in parts for number in part) == batch
    assert {len(part) for part in parts} == {2}


def test_a_batch_that_cannot_be_shared_equally_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="multiple of 2"):
        Share.join(5, torch.device("cpu"))
