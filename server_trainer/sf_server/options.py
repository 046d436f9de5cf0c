"""Command-line options made from a settings struct, so that names, types, ranges, defaults and help are written once."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from sf_contract.command import ArgumentParser

_METAVARS: Final[Mapping[type, str]] = {int: "N", float: "X", str: "TEXT"}


def add_options(
    parser: ArgumentParser,
    kind: type[msgspec.Struct],
    *,
    metavars: Mapping[str, str] | None = None,
    headings: Mapping[str, str] | None = None,
) -> None:
    """An option for each field of a struct: `some_name` becomes `--some-name`; help is the field's description.

    Args:
        metavars: placeholders for single fields, where the type alone says too little.
        headings: what `--help` writes above some fields and those that follow them.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    group: ArgumentParser | argparse._ArgumentGroup = parser
    for field in msgspec.structs.fields(kind):
        if headings and field.name in headings:
            group = parser.add_argument_group(headings[field.name])
        description = next(meta.description for meta in hints[field.name].__metadata__ if meta.description)
        add_option(
            group,
            field,
            plain=typing.get_type_hints(kind)[field.name],
            description=description,
            metavar=(metavars or {}).get(field.name),
        )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with the same settings; flags win")


def add_option(
    parser: ArgumentParser | argparse._ArgumentGroup,
    field: msgspec.structs.FieldInfo,
    *,
    plain: Any,
    description: str,
    metavar: str | None,
) -> None:
    """One option; `plain` is the field's type without annotations. One for one or several values may be repeated."""
    flag = "--" + field.name.replace("_", "-")
    text = (description + _default_text(field)).replace("%", "%%")
    if plain is bool:
        action = argparse.BooleanOptionalAction if field.default else "store_true"
        parser.add_argument(flag, action=action, help=text)
        return
    if typing.get_origin(plain) is Literal:
        parser.add_argument(flag, choices=typing.get_args(plain), help=text)
        return
    if any(typing.get_origin(member) is tuple for member in typing.get_args(plain)):
        parser.add_argument(flag, action="append", metavar=metavar or "TEXT", help=text)
        return
    if typing.get_origin(plain) is tuple:
        parser.add_argument(flag, type=_comma_separated, metavar=metavar or "A,B", help=text)
        return
    convert = _single_type(plain)
    parser.add_argument(flag, type=convert, metavar=metavar or _METAVARS[convert], help=text)


def _single_type(plain: Any) -> type:
    """`int` for `int | None`."""
    members = typing.get_args(plain) or (plain,)
    return next(member for member in members if isinstance(member, type) and member is not type(None))


def _default_text(field: msgspec.structs.FieldInfo) -> str:
    default = field.default
    if default is msgspec.NODEFAULT:
        return " (needed)"
    if default is None or isinstance(default, bool | tuple):
        return ""
    return f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
