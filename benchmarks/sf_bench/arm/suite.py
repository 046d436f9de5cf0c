"""The device's own tests as an EMULATED aarch64 process: the same files, the same assertions, the aarch64 wheels."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sf_bench.arm.profiles import Profile
from sf_bench.arm.staging import stage_code, write_program
from sf_bench.arm.toolkit import Toolkit, emulator_command
from sf_contract.errors import UsageError

_SHARED: Final = ("codec", "frames", "int4", "records", "samples", "signing", "tokenizer")
_DEVICE: Final = ("memory", "outbox", "outbox_durability", "process", "producer", "run", "session", "sources", "trust")
PATHS: Final = (
    *(f"tests/edge_runtime/test_edge_{name}.py" for name in _DEVICE),
    *(f"tests/contract/test_contract_{name}.py" for name in _SHARED),
)
"""Tests of the device, and of what it shares with the server, in which numbers, bytes, compiled libraries, the file system
or processes decide. The others are the same Python everywhere, or judge by the clock."""
_PACKAGES: Final = ("sf_contract", "sf_edge", "sf_export")
"""What the tests import of ours; the exporter only for writing small bundles."""
_PROFILE: Final = "emulated"
_EXAMPLES: Final = 20
_PLUGIN: Final = f"""\
import hypothesis
hypothesis.settings.register_profile(
    "{_PROFILE}", deadline=None, max_examples={_EXAMPLES}, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
"""
"""Emulation is ten to thirty times slower than the machine, and not evenly so: no test may be judged by its time."""
_TIMEOUT_S: Final = 300


def run_suite(
    toolkit: Toolkit, profile: Profile, *, root: Path, chosen: Sequence[str], say: Callable[[str], None]
) -> int:
    """Run the tests that are not slow; pytest's exit code.

    Args:
        toolkit: the emulator's files.
        profile: the processor.
        root: the checkout, which has `tests` and `pyproject.toml`.
        chosen: arguments of pytest; without any, the tests of the device and of what it shares with the server.
        say: told what runs.

    Raises:
        UsageError: `root` is no checkout.
    """
    if not (root / "tests").is_dir():
        raise UsageError(f"{root} has no tests", cure="run it in a checkout, or name one with --root")
    with tempfile.TemporaryDirectory() as work:
        program = _program(toolkit, profile, Path(work))
        say(f"sf-bench: {' '.join(chosen or PATHS)} on EMULATED {profile.name}")
        return subprocess.run(pytest_command(program, chosen), cwd=root, check=False).returncode


def pytest_command(program: Path, chosen: Sequence[str]) -> list[str]:
    """pytest in the emulated Python: nothing is written into the checkout, no test is judged by its time."""
    return [
        *(str(program), "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "emulated_hypothesis"),
        *(f"--hypothesis-profile={_PROFILE}", f"--timeout={_TIMEOUT_S}", *(chosen or PATHS)),
    ]


def _program(toolkit: Toolkit, profile: Profile, work: Path) -> Path:
    code = stage_code(work, _PACKAGES)
    (code / "emulated_hypothesis.py").write_text(_PLUGIN, encoding="utf-8")
    command = emulator_command(toolkit, profile, [], code=code, with_tests=True)
    return write_program(work / "python3", command, code=code)
