"""`sf-edge slim`: remove from a device's packages what nothing on a device ever loads.

A package installer brings whole packages: ONNX Runtime's wheel holds the library twice, once for Python and once for programs
in C, and its tools for making models; NumPy's holds its tests and what is needed to build against it. What is removed
was installed by the packages themselves (their lists of files say so), and comes back with
`pip install --force-reinstall`.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from sf_contract.errors import UsageError

NEEDED: Final = frozenset({"cffi", "msgspec", "numpy", "onnxruntime", "pynacl", "pyzmq", "tokenizers"})
"""The packages of `requirements-edge.txt`."""
_HARMLESS: Final = frozenset({"pip", "setuptools", "wheel", "splitfrozen"})
_UNUSED: Final = {
    "onnxruntime": (
        "onnxruntime/capi/libonnxruntime.so*",
        *(f"onnxruntime/{part}/*" for part in ("transformers", "quantization", "tools", "datasets", "backend")),
    ),
    "numpy": (
        *("numpy/tests/*", "numpy/*/tests/*", "numpy/f2py/*", "numpy/distutils/*"),
        *("numpy/_core/include/*", "numpy/_core/lib/*"),
    ),
}
_UNUSED_ANYWHERE: Final = ("*.pyi", "*.pxd", "*.h", "*.a")
"""Types and headers: for those who write programs."""


@dataclass(frozen=True, slots=True)
class Unused:
    """Files of one package that nothing on a device loads."""

    package: str
    files: tuple[Path, ...]
    nbytes: int


def find_unused(distributions: Iterable[metadata.Distribution]) -> list[Unused]:
    """What could go from an environment that holds a device's packages only.

    Raises:
        UsageError: it holds other packages too, which may need what would go.
    """
    by_name = {_name(each): each for each in distributions}
    if strangers := sorted({*by_name} - NEEDED - _HARMLESS):
        raise UsageError(
            f"this environment holds more than a device needs ({', '.join(strangers[:3])}), which may use those files",
            cure="make one from requirements-edge.txt alone, as docs/devices/footprint.md shows",
        )
    found = [_unused_of(name, by_name[name]) for name in sorted(NEEDED & {*by_name})]
    return [each for each in found if each.files]


def remove(unused: Iterable[Unused]) -> None:
    """Delete the files, and the folders that are empty then."""
    for file in (file for each in unused for file in each.files):
        file.unlink(missing_ok=True)
        _remove_empty(file.parent)


def slim_environment(*, is_removed: bool) -> list[Unused]:
    """What could go from this program's own environment; removed when asked to.

    Raises:
        UsageError: the environment is not the device's own.
    """
    if is_removed and sys.prefix == sys.base_prefix:
        raise UsageError(
            "this is the system's own Python, whose packages others use",
            cure="install sf-edge in a virtual environment",
        )
    unused = find_unused(metadata.distributions())
    if is_removed:
        remove(unused)
    return unused


def unused_text(unused: Iterable[Unused], *, is_removed: bool) -> str:
    """For a person."""
    lines = [f"{each.package}: {len(each.files)} files, {each.nbytes / 1e6:.1f} MB" for each in unused]
    if not lines:
        return "nothing is left that could go"
    end = "removed" if is_removed else "nothing was removed; sf-edge slim --yes does it"
    return "\n".join((*lines, end))


def unused_json(unused: Iterable[Unused], *, is_removed: bool) -> dict[str, object]:
    """For machines."""
    return {"removed": is_removed, "packages": {each.package: each.nbytes for each in unused}}


def _name(distribution: metadata.Distribution) -> str:
    return re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()


def _unused_of(name: str, distribution: metadata.Distribution) -> Unused:
    patterns = (*_UNUSED.get(name, ()), *_UNUSED_ANYWHERE)
    files = tuple(sorted(_existing(distribution, patterns)))
    return Unused(package=name, files=files, nbytes=sum(file.stat().st_size for file in files))


def _existing(distribution: metadata.Distribution, patterns: Iterable[str]) -> Iterator[Path]:
    for listed in distribution.files or ():
        path = Path(str(distribution.locate_file(listed)))
        is_inside = ".." not in listed.parts  # scripts lie outside, and others may share that folder
        if is_inside and path.is_file() and any(fnmatch.fnmatchcase(listed.as_posix(), each) for each in patterns):
            yield path


def _remove_empty(folder: Path) -> None:
    while not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
