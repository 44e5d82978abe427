"""Two processes that share each batch learn what one process learns from the whole of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nuwaxl.errors import InputError, NuwaxlError
from nuwaxl.train import checkpoint
from nuwaxl.train.cli import main
from nuwaxl.train.config import TKLVAEConfig, from_table
from nuwaxl.train.distributed import Processes
from nuwaxl.train.networks.tklvae import TKLVAE
from tests.train.small import NETWORKS, WITHOUT_GRADIENT, run_config, write_tklvae

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
accumulation = {accumulation}
device = "cpu"

[training]
frames = 3
calibration_batches = 1
init = "{init}"
{training}

[tklvae]
{network}
"""
SIZES = {"latent_channels": 2, "block_channels": [8, 8], "layers_per_block": 1, "norm_groups": 4, "temporal_heads": 2}
GAME = "adversarial_weight = 0.5\nadversarial_start = 1\ndiscriminator_channels = 8"
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
COMMAND = ["--module", "nuwaxl.train"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("launcher", "accumulation", "training"),
    [(ACCELERATE, 2, GAME), pytest.param(TORCHRUN, 1, "", marks=pytest.mark.slow)],
    ids=["accelerate, with a discriminator, in parts", "torchrun"],
)
def test_two_processes_equal_one(
    cartoons: Path, tmp_path: Path, launcher: list[str], accumulation: int, training: str
) -> None:
    init = _write_tklvae(tmp_path / "init.safetensors")
    for name, parts in (("one", 1), ("two", accumulation)):
        text = CONFIG.format(
            data=cartoons,
            out=tmp_path / name,
            init=init,
            training=training,
            accumulation=parts,
            network="\n".join(f"{key} = {value}" for key, value in SIZES.items()),
        )
        (tmp_path / f"{name}.toml").write_text(text)
    assert main(["tklvae", str(tmp_path / "one.toml")]) == 0
    command = [sys.executable, "-m", *launcher, *COMMAND, "tklvae", str(tmp_path / "two.toml")]
    run = subprocess.run(command, check=True, timeout=600, stdout=subprocess.PIPE, text=True)
    assert run.stdout.splitlines() == [str(tmp_path / "two" / "model")], "one process says where the model is"

    one, two = (tmp_path / name / "step_00000003" for name in ("one", "two"))
    weights = [checkpoint.load_weights(folder / "tklvae.safetensors") for folder in (one, two)]
    unmoved = torch.nn.init.dirac_(torch.empty_like(weights[0]["encoder.temporal_in.weight"]))
    assert not torch.equal(weights[0]["encoder.temporal_in.weight"], unmoved)
    names = sorted(
        path.name for path in one.iterdir() if path.suffix == ".safetensors" and "optimizer" not in path.name
    )
    assert names == sorted(
        ["ema.safetensors", "tklvae.safetensors", *(["discriminator.safetensors"] if training else [])]
    )
    for file in names:
        first, second = (checkpoint.load_weights(folder / file) for folder in (one, two))
        for name, tensor in first.items():
            if not name.endswith(WITHOUT_GRADIENT):
                torch.testing.assert_close(
                    second[name], tensor, rtol=0, atol=1e-5, msg=lambda text, at=f"{file}: {name}": f"{at}: {text}"
                )
    logs = [(folder.parent / "log.jsonl").read_text().splitlines() for folder in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 3
    for lines in zip(*logs, strict=True):
        alone, shared = (json.loads(line) for line in lines)
        assert set(alone) == set(shared)
        assert shared["l1"] == pytest.approx(alone["l1"], rel=1e-4)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_of_mtd_equal_one(cartoons: Path, tmp_path: Path) -> None:
    """Each encodes one of the two videos, and takes its share of segments, dropped prompts, timesteps and noise.

    The gradients' moments tell more than the weights: AdamW divides a gradient by its size, which makes a step of what
    is rounding too. At ten times this rate one weight of a zero convolution differed by 1.1e-5.
    """
    weights = write_tklvae(tmp_path / "tklvae.safetensors")
    for name in ("one", "two"):
        run = {"data": str(cartoons), "out": str(tmp_path / name), "steps": 3, "batch_size": 4, "learning_rate": 1e-4}
        run |= {"warmup": 1, "log_every": 1, "checkpoint_every": 3, "device": "cpu"}
        training = {"tklvae": str(weights), "depth": 2, "prompt_dropout": 0.5, "latents": str(tmp_path / f"l_{name}")}
        tables = {"run": run, "training": training, **NETWORKS}
        lines = [
            line
            for table, values in tables.items()
            for line in (f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()))
        ]
        (tmp_path / f"{name}.toml").write_text("\n".join(lines))
    assert main(["mtd", str(tmp_path / "one.toml")]) == 0
    command = [sys.executable, "-m", *TORCHRUN, *COMMAND, "mtd", str(tmp_path / "two.toml")]
    subprocess.run(command, check=True, timeout=600)
    latents = [sorted((tmp_path / f"l_{name}").rglob("*.npy")) for name in ("one", "two")]
    assert [path.name for path in latents[0]] == [path.name for path in latents[1]]
    assert len(latents[0]) == 2
    for file in ("mtd", "text", "ema"):
        first, second = (
            checkpoint.load_weights(tmp_path / name / "step_00000003" / f"{file}.safetensors")
            for name in ("one", "two")
        )
        assert len(first) > 10
        for name, tensor in first.items():
            if not name.endswith(WITHOUT_GRADIENT):
                torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5, msg=f"{file}: {name}")
    first, second = (
        checkpoint.load_weights(tmp_path / name / "step_00000003" / "optimizer.safetensors") for name in ("one", "two")
    )
    means = {name: tensor for name, tensor in first.items() if name.endswith(".exp_avg")}
    largest = max(float(tensor.abs().max()) for tensor in means.values())
    assert largest > 0
    for name, tensor in means.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5 * largest, msg=name)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 3
    for lines in zip(*logs, strict=True):
        alone, shared = (json.loads(line) for line in lines)
        assert set(alone) == set(shared)
        for figure in set(alone) - {"seconds"}:
            assert shared[figure] == pytest.approx(alone[figure], rel=1e-4), figure


def _write_tklvae(path: Path) -> Path:
    """Weights whose decoder draws contrast. What an untrained one draws is nearly flat, and the discriminator's
    normalisation would blow up the last bits of it, in which processes may differ."""
    torch.manual_seed(3)
    network = TKLVAE(from_table(TKLVAEConfig, SIZES, "[tklvae]"))
    with torch.no_grad():
        network.decoder.conv_out.weight.mul_(10.0)
    checkpoint.save_weights(network.state_dict(), path)
    return path


def test_shares_cover_the_batch_once() -> None:
    batch = list(range(12))
    for world, accumulation in ((1, 1), (3, 1), (1, 4), (3, 2)):
        processes = [Processes(rank, world, torch.device("cpu")) for rank in range(world)]
        parts = [share.of(batch) for process in processes for share in process.parts(accumulation)]
        assert sorted(number for part in parts for number in part) == batch
        assert {len(part) for part in parts} == {12 // world // accumulation}
        for process in processes:  # its parts are its share
            own = [number for share in process.parts(accumulation) for number in share.of(batch)]
            assert len(own) == len(process.share.of(batch))


def test_that_another_process_ended_is_one_line_and_a_mistake_of_ours_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gloo says of it was seen when one of two processes was terminated."""
    processes = Processes(0, 2, torch.device("cpu"))
    said = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1. This is typically caused by"

    errors: list[Exception] = [
        RuntimeError(said),
        torch.distributed.DistBackendError("NCCL error: remote process exited. Last"),
        RuntimeError("shapes differ"),
    ]

    def fail(*_: object) -> None:
        raise errors[0]

    for name in ("gather", "gather_object", "reduce"):
        monkeypatch.setattr(f"nuwaxl.train.distributed.{name}", fail)
    calls = (
        lambda: processes.gather(torch.zeros(1)),
        lambda: processes.means({"loss": [1.0]}),
        lambda: processes.average([torch.zeros(1)]),
    )
    for said in ("peer \\[127.0.0.1\\]:1", "remote process exited"):
        for call in calls:
            with pytest.raises(NuwaxlError, match=rf"found one that ended: .*{said}; .* by --resume$"):
                call()
        del errors[0]
    for call in calls:
        with pytest.raises(RuntimeError, match="shapes differ"):
            call()


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_ways_of_sharing_a_network_that_are_not_built_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match=f"data-parallel.*found {name}"):
        Processes.join(run_config(Path("unused"), Path("unused")))


def test_accelerates_cpu_flag_is_heard_where_the_device_is_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run = run_config(Path("unused"), Path("unused"), device="auto")
    assert run.torch_device().type == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert run.torch_device().type == "cpu"
