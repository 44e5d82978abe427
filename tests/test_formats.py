"""JSON and TOML that may hold anything."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.formats import parse_json, parse_toml


def test_values_are_read() -> None:
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
    assert parse_toml("[a]\nb = 1") == {"a": {"b": 1}}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 50_000, "9" * 5000, b"\xff"])
def test_bad_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"b": {"a": 1, "a": 2}}]'])
def test_a_key_twice_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(ValueError, match="the key 'a' twice"):
        parse_json(text)


@pytest.mark.parametrize("text", ["=", "a = 1\na = 2", "a = " + "[" * 20_000, "a = " + "9" * 5000, "a = \0"])
def test_bad_toml_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_toml(text)


@given(st.text())
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    for parse in (parse_json, parse_toml):
        with suppress(ValueError):
            parse(text)
