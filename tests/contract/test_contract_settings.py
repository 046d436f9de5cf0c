"""Settings: defaults, file, flags; and every mistake named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from sf_contract.errors import UsageError
from sf_contract.settings import read_toml, resolve_settings


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data: str
    learning_rate: Annotated[float, Meta(gt=0)] = 0.1
    epochs: Annotated[int, Meta(ge=1)] = 3
    watch: bool = False


@pytest.fixture
def toml(tmp_path: Path):
    """Writes a settings file."""

    def write(content: str) -> Path:
        path = tmp_path / "settings.toml"
        path.write_text(content)
        return path

    return write


def test_defaults_then_file_then_flags(toml) -> None:
    path = toml('data = "file"\nepochs = 5\nlearning-rate = 0.5\n')
    settings = resolve_settings(Example, toml_path=path, flags={"epochs": 7})
    assert settings == Example(data="file", learning_rate=0.5, epochs=7, watch=False)


def test_every_unknown_key_and_wrong_type_is_named_at_once_with_where(toml) -> None:
    path = toml('data = "x"\nepoch = 5\nwatch = "yes"\ncolour = 1\n')
    with pytest.raises(UsageError) as caught:
        resolve_settings(Example, toml_path=path, flags={"epochs": 0, "learning_rat": 1.0})
    what = caught.value.what
    for part in (
        "unknown setting epoch (did you mean epochs?)",
        "unknown setting colour",
        "watch = 'yes'",
        "--epochs = 0",
        "unknown setting --learning-rat (did you mean --learning-rate?)",
        str(path),
        "command line",
    ):
        assert part in what


@pytest.mark.parametrize("value", ["1.5", "true", '"3"', "[3]", "-1", "1e3"])
def test_a_wrong_type_or_range_is_never_converted(toml, value: str) -> None:
    with pytest.raises(UsageError, match="epochs"):
        resolve_settings(Example, toml_path=toml(f'data = "x"\nepochs = {value}\n'), flags={})


def test_a_whole_number_is_a_float_too(toml) -> None:
    assert resolve_settings(Example, toml_path=toml('data = "x"\nlearning_rate = 1\n'), flags={}).learning_rate == 1.0


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UsageError, match="missing setting `data`"):
        resolve_settings(Example, toml_path=None, flags={})


def test_files_that_cannot_be_read_are_named(tmp_path: Path, toml) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match="is not TOML"):
        read_toml(toml("a = = 1"))
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        read_toml(path)
