"""A training whose process is interrupted, terminated or killed, and goes on by --resume."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nuwaxl.train.cli import main
from tests.train.test_cli import TKLVAE_TABLE, run_table

STEPS = 60


def configuration(cartoons: Path, out: Path) -> Path:
    text = run_table(cartoons, out, STEPS) + "[training]\nframes = 2\ncalibration_batches = 1\n"
    path = out.with_suffix(".toml")
    path.write_text(text + TKLVAE_TABLE.format(temporal="identity"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (signal.SIGINT, 130, "nuwaxl-train: interrupted\n"),
        (signal.SIGTERM, 143, "nuwaxl-train: terminated\n"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_stopped_process_says_so_and_goes_on_bit_equal(
    cartoons: Path, tmp_path: Path, sent: signal.Signals, status: int, said: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["tklvae", str(configuration(cartoons, whole))]) == 0
    config = configuration(cartoons, parts)
    command = [sys.executable, "-m", "nuwaxl.train", "tklvae", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list(parts.glob("step_*[0-9]")):
            assert process.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert errors == said
    assert not (parts / f"step_{STEPS:08d}").exists()
    assert main(["tklvae", str(config), "--resume"]) == 0
    for folder in ("model", f"step_{STEPS:08d}"):
        files = sorted((whole / folder).glob("*.safetensors"))
        assert files
        for path in files:
            assert path.read_bytes() == (parts / folder / path.name).read_bytes(), path.name
    lines = (parts / "log.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [f'{{"step": {step}' for step in range(1, STEPS + 1)]
    assert sorted(path.name for path in parts.iterdir()) == sorted(path.name for path in whole.iterdir())
