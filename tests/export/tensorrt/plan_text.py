"""What can be read in a TensorRT-RTX 1.7 engine file without a GPU, which `deserialize_cuda_engine` wants.

Names of tensors stand in it with their length before them, once for every profile, and the compiled program describes
itself in plain text. The format is not documented: this is for tests alone.
"""

import re


def version(plan: bytes) -> tuple[int, ...]:
    """Major, minor and patch of the runtime."""
    assert plan[:4] == b"vtrt"
    return tuple(plan[24:27])


def has_tensor(plan: bytes, name: str, profile: int) -> bool:
    """Whether a tensor of this name is one of the engine's in this profile."""
    text = (name if profile == 0 else f"{name} [profile {profile}]").encode()
    return len(text).to_bytes(8, "little") + text in plan


def program(plan: bytes) -> str:
    """The header and the tensors of the program of the first profile."""
    start = plan.index(b"header {")
    return plan[start : plan.index(b"main {", start)].decode("latin-1")


def listed(text: str, kind: str) -> list[str]:
    """Names of the program's "inputs" or "outputs"."""
    found = re.search(rf"\n  {kind}={{([^}}]*)}}", text)
    assert found is not None
    return [name.removesuffix(".1") for name in re.findall(r'"([^"]+)"', found[1])]


def tensor(text: str, name: str) -> tuple[tuple[int, ...], str]:
    """Shape and type of one of the program's inputs or outputs."""
    found = re.search(rf'dims={{([0-9 ]*)}}[^}}]*name="{re.escape(name)}\.1".* type=(\w+) }}', text)
    assert found is not None, name
    return tuple(int(size) for size in found[1].split()), found[2]
