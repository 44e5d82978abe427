"""docs/training.md has one table of all keys, and it is true."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nuwaxl.train.config import DiffusionConfig, MTDConfig, SamplerConfig, TextConfig, TKLVAEConfig
from nuwaxl.train.mtd import MTDTraining
from nuwaxl.train.run import RunConfig
from nuwaxl.train.tklvae import TKLVAETraining

TABLES: dict[str, type] = {
    "run": RunConfig,
    "training (tklvae)": TKLVAETraining,
    "training (mtd)": MTDTraining,
    "tklvae": TKLVAEConfig,
    "mtd": MTDConfig,
    "text": TextConfig,
    "diffusion": DiffusionConfig,
    "sampler": SamplerConfig,
}


def rows() -> list[tuple[str, str, str, str]]:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    names = "|".join(re.escape(name) for name in TABLES)
    return re.findall(rf"^\| ({names}) \| `(\w+)` \| (.+) \| (.+) \|$", text, re.MULTILINE)


def shown(field: "dataclasses.Field[Any]") -> str:
    return "required" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"


def test_every_key_is_documented_once_in_order_with_its_default() -> None:
    expected = [(table, f.name, shown(f)) for table, cls in TABLES.items() for f in dataclasses.fields(cls)]
    assert [(table, key, default) for table, key, _, default in rows()] == expected


def test_every_choice_of_a_key_is_named() -> None:
    checked = 0
    for table, key, meaning, default in rows():
        hint = get_type_hints(TABLES[table])[key]
        if get_origin(hint) is Literal:
            for choice in get_args(hint):
                checked += 1
                assert f'"{choice}"' in meaning + default, f"{table}.{key} lacks {choice}"
    assert checked > 10
