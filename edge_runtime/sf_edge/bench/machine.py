"""The machine a measurement was made on, as far as it decides how fast a front end runs there."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.command import usable_cores
from sf_contract.hashes import sha256
from sf_edge.governor.kernel_files import line_or_none

FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
"""Processor flags that decide which kernels run, as Linux names them."""


class Machine(msgspec.Struct, frozen=True):
    """A machine.

    Attributes:
        processor: architecture, and the model's or board's name where Linux gives one.
        cores: processors this process may use.
        flags: those of `FLAGS` it has.
        kernel: release of the operating system's kernel.
        governor: frequency policy of the first processor; None where there is none to read.
        memory_bytes: main memory; None where it cannot be read.
    """

    processor: str
    cores: int
    flags: tuple[str, ...]
    kernel: str = ""
    governor: str | None = None
    memory_bytes: int | None = None

    @property
    def line(self) -> str:
        """For reading."""
        return f"{self.processor}, {self.cores} cores, {' '.join(self.flags) or 'no vector flags of interest'}"


def describe_machine(root: Path = Path("/")) -> Machine:
    """This machine, from `/proc` and `/sys` under `root`; a missing or strange file gives fewer words, never an error."""
    cpuinfo = _text(root / "proc/cpuinfo")
    flags = set(_field(cpuinfo, "flags").split()) | set(_field(cpuinfo, "Features").split())
    return Machine(
        processor=f"{platform.machine()} {_processor_name(root, cpuinfo)}".strip(),
        cores=usable_cores(),
        flags=tuple(flag for flag in FLAGS if flag in flags),
        kernel=os.uname().release,
        governor=line_or_none(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        memory_bytes=_memory_bytes(root),
    )


def machine_digest(machine: Machine, *, onnxruntime: str) -> str:
    """What a stored measurement is good for: this processor, this many cores, these kernels and no other.

    The kernel's release, the governor and the memory are left out: they change without changing which of two thread counts
    or graphs is faster.
    """
    decisive = {
        "processor": machine.processor,
        "cores": machine.cores,
        "flags": machine.flags,
        "onnxruntime": onnxruntime,
    }
    return sha256(msgspec.json.encode(decisive, order="sorted")).hexdigest()


def _processor_name(root: Path, cpuinfo: str) -> str:
    """The model name on x86; elsewhere the board's name and the core's number, which tells a Cortex-A72 from an A76."""
    board = (line_or_none(root / "proc/device-tree/model") or "").strip("\0 ")
    part = _field(cpuinfo, "CPU part")
    parts = (_field(cpuinfo, "model name"), board, f"CPU part {part}" if part else "")
    return ", ".join(name for name in parts if name)


def _memory_bytes(root: Path) -> int | None:
    words = _field(_text(root / "proc/meminfo"), "MemTotal").split()
    return int(words[0]) * 1024 if words and words[0].isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(listing: str, name: str) -> str:
    lines = (line.partition(":") for line in listing.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
