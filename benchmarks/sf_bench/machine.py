"""The machine a measurement was made on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.command import usable_cores

FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
"""Processor flags that decide which kernels run, as Linux names them."""


class Machine(msgspec.Struct, frozen=True):
    """A machine.

    Attributes:
        processor: architecture and model name.
        cores: processors this process may use.
        flags: those of `FLAGS` it has.
    """

    processor: str
    cores: int
    flags: tuple[str, ...]

    @property
    def line(self) -> str:
        """For reading."""
        return f"{self.processor}, {self.cores} cores, {' '.join(self.flags) or 'no vector flags of interest'}"


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """This machine, from what Linux says; a missing or strange file gives fewer words, never an error."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = set(_field(text, "flags").split()) | set(_field(text, "Features").split())
    return Machine(
        processor=f"{platform.machine()} {_field(text, 'model name')}".strip(),
        cores=usable_cores(),
        flags=tuple(flag for flag in FLAGS if flag in flags),
    )


def _field(cpuinfo: str, name: str) -> str:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
