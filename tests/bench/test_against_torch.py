"""The engine on the CPU against plain PyTorch."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from nuwaxl.bench.against_torch import compare, main
from tests.export.conftest import checkpoint, exported

__all__ = ["checkpoint", "exported"]


def test_both_render_the_same_film_in_turns(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, (eager,) = compare(str(exported), 20, "cpu:2", ["eager"], 2, 3)
    assert len(ours) == len(eager.wall_s) == 3
    assert eager.times == sorted(theirs / mine for theirs, mine in zip(eager.wall_s, ours, strict=True))[1]
    assert eager.most_off <= 1
    assert eager.ready_s > 0

    assert main([str(exported), "--frames", "20", "--rounds", "1", "--modes", "eager", "--devices", "cpu:1"]) == 0
    head, mine, theirs = capsys.readouterr().out.splitlines()
    assert head.split() == ["s", "frames/s", "times", "ready,", "s", "off", "by"]
    assert mine.startswith("cpu:1 ")
    assert theirs.startswith("torch eager ")


@pytest.mark.slow
def test_through_torch_compile_it_is_the_same_film(exported: Path) -> None:
    _, (compiled,) = compare(str(exported), 20, "cpu:1", ["compile"], 1, 1)
    assert compiled.most_off <= 1


def test_what_cannot_be_compared_is_refused(
    exported: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        ([str(tiny_bundle)], "nuwaxl-export --with-checkpoint"),
        ([str(exported), "--devices", "torch:cpu"], "make gpu"),
        ([str(exported), "--devices", "cuda:0"], "make gpu"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(exported), "--modes", "eager,lazy"])
    assert "found lazy" in capsys.readouterr().err
