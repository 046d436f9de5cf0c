"""Settings: defaults, then one TOML file, then command-line flags. Unknown keys and wrong types are refused, all at once."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sf_contract.errors import UsageError

S = TypeVar("S", bound=msgspec.Struct)


def resolve_settings(kind: type[S], *, toml_path: Path | None, flags: Mapping[str, Any]) -> S:
    """Settings of one command.

    Args:
        kind: a frozen struct; its fields are the known keys, its annotations their types and ranges.
        toml_path: a file with the same keys at top level, or None.
        flags: what the command line gave; these win.

    Raises:
        UsageError: naming every unknown key, wrong type and value out of range.
    """
    from_file = {} if toml_path is None else read_toml(toml_path)
    where_file = str(toml_path)
    problems = [
        *_problems(kind, from_file, where=where_file, spell=lambda key: key),
        *_problems(kind, flags, where="command line", spell=lambda key: "--" + key.replace("_", "-")),
    ]
    if problems:
        raise UsageError("; ".join(problems), cure="correct the settings named; --help lists them all")
    try:
        return msgspec.convert({**from_file, **flags}, kind)
    except msgspec.ValidationError as problem:
        raise UsageError(
            _with_flag_names(str(problem)), cure="give the missing setting; --help lists them all"
        ) from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary, dashes in keys read as underscores."""
    try:
        with path.open("rb") as stream:
            document = tomllib.load(stream)
    except OSError as problem:
        raise UsageError(f"settings file {path} cannot be read: {problem.strerror}", cure="check the path") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"settings file {path} is not TOML: {problem}", cure="correct that line") from problem
    return {key.replace("-", "_"): value for key, value in document.items()}


def _problems(kind: type[msgspec.Struct], given: Mapping[str, Any], *, where: str, spell: Any) -> list[str]:
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    problems: list[str] = []
    for key, value in given.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f" (did you mean {spell(close[0])}?)" if close else ""
            problems.append(f"{where}: unknown setting {spell(key)}{hint}")
            continue
        try:
            msgspec.convert(value, fields[key].type)
        except msgspec.ValidationError as problem:
            problems.append(f"{where}: {spell(key)} = {value!r}: {problem}")
    return problems


def _with_flag_names(message: str) -> str:
    return message.replace("Object missing required field", "missing setting")
