"""A training whose process or processes are interrupted, terminated or killed, and goes on by --resume."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nuwaxl.cli import Terminated
from nuwaxl.train.cli import main
from nuwaxl.train.signals import end_at_signals, heed_one_signal
from tests.train.test_cli import TKLVAE_TABLE, run_table
from tests.train.test_distributed import ACCELERATE, COMMAND

STEPS = 60

pytestmark = pytest.mark.usefixtures("one_thread")


def configuration(cartoons: Path, out: Path) -> Path:
    text = run_table(cartoons, out, STEPS) + "[training]\nframes = 2\ncalibration_batches = 1\n"
    path = out.with_suffix(".toml")
    path.write_text(text + TKLVAE_TABLE.format(temporal="identity"))
    return path


@pytest.fixture(scope="module")
def whole(cartoons: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The output of a training that nothing stopped."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    assert main(["tklvae", str(configuration(cartoons, out))]) == 0
    return out


def wait_for_checkpoint(process: subprocess.Popen[str], out: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob("step_*[0-9]")):
        assert process.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    cartoons: Path, tmp_path: Path, whole: Path, sent: signal.Signals, status: int, said: str
) -> None:
    parts = tmp_path / "parts"
    config = configuration(cartoons, parts)
    command = [sys.executable, "-m", "nuwaxl.train", "tklvae", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_checkpoint(process, parts)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    progress = [line for line in errors.removesuffix(said).splitlines() if " step " in line]
    assert errors == "".join(f"{line}\n" for line in progress) + said, "nothing else, no traceback among it"
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "to_all", "said"), [(signal.SIGINT, True, "interrupted"), (signal.SIGTERM, False, "terminated")]
)
def test_two_processes_that_are_stopped_each_say_so_and_leave_what_is_gone_on_with(
    cartoons: Path, tmp_path: Path, sent: signal.Signals, to_all: bool, said: str
) -> None:
    """Ctrl-C comes to all processes of a terminal, a SIGTERM to the launcher; it passes on what it gets."""
    out = tmp_path / "out"
    config = configuration(cartoons, out)
    command = [sys.executable, "-m", *ACCELERATE, *COMMAND, "tklvae", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for_checkpoint(process, out)
        (os.killpg if to_all else os.kill)(process.pid, sent)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "SIGKILL" not in errors, "none had to be killed by the launcher"
    assert errors.count(f"nuwaxl-train: {said}\n") == 2
    assert errors.count("Traceback") == 1, "the launcher's own"
    assert not [path for path in out.iterdir() if path.suffix in (".partial", ".old")]
    assert not (out / f"step_{STEPS:08d}").exists()
    assert main(["tklvae", str(config), "--resume"]) == 0
    assert (out / f"step_{STEPS:08d}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_another_to_come_ends_at_once(
    cartoons: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "nuwaxl.train", "tklvae", str(configuration(cartoons, tmp_path / "out"))]
    process = subprocess.Popen(command, env={**os.environ, **launched})
    try:
        for _ in range(600):
            assert process.poll() is None
            with socket.socket() as store:
                if store.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        time.sleep(0.5)  # from the store it has opened to waiting for the other process there
        process.send_signal(sent)
        assert process.wait(timeout=20) == -sent
    finally:
        process.kill()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def _launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process of a launcher, within nuwaxl.cli.run()."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def terminate(*_: object) -> None:
        raise AssertionError("heed_one_signal has it")

    signal.signal(signal.SIGTERM, terminate)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_launched")
@pytest.mark.parametrize(("sent", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_first_signal_of_a_launched_process_is_the_only_one(
    sent: signal.Signals, raised: type[BaseException]
) -> None:
    cleaned = []

    def train() -> None:
        try:
            signal.raise_signal(sent)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(raised) as caught, heed_one_signal():
        train()
    assert caught.type is raised
    assert cleaned
    signal.raise_signal(signal.SIGINT)  # when Python exits, too


@pytest.mark.usefixtures("_launched")
def test_without_a_signal_all_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with heed_one_signal():
        heeded = [signal.getsignal(number) for number in numbers]
        assert not set(before) & set(heeded)
        with end_at_signals():
            assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL, signal.SIG_DFL]
        assert [signal.getsignal(number) for number in numbers] == heeded
    assert [signal.getsignal(number) for number in numbers] == before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # in the background of a shell
    with heed_one_signal(), end_at_signals():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    monkeypatch.delenv("LOCAL_RANK")
    with heed_one_signal(), end_at_signals():
        assert signal.getsignal(signal.SIGTERM) is before[1]
