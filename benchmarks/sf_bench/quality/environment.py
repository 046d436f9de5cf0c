"""What a result was measured on and with; stands in every report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import msgspec

from sf_contract import SOFTWARE
from sf_edge.bench.machine import Machine, describe_machine

PACKAGES: Final = ("torch", "transformers", "peft", "onnxruntime", "numpy", "pyzmq")


class Environment(msgspec.Struct, frozen=True):
    """Machine, threads of each process, processes at the same time, and versions."""

    machine: Machine
    threads: int
    jobs: int
    software: str
    python: str
    packages: dict[str, str]

    @property
    def line(self) -> str:
        """For reading."""
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        processes = f"{self.jobs} process{'es' if self.jobs > 1 else ''} at a time, {self.threads} thread"
        return f"{self.machine.line}; {processes}{'s' if self.threads > 1 else ''} each; {packages}"


def describe_environment(*, threads: int, jobs: int) -> Environment:
    """Here and now."""
    return Environment(
        machine=describe_machine(),
        threads=threads,
        jobs=jobs,
        software=SOFTWARE,
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
