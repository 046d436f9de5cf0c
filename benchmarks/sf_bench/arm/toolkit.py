"""The toolkit folder that `sf-bench arm-setup` makes, and starting an emulated aarch64 Python in it.

system/      unpacked Debian packages: Python and its libraries for arm64
wheels/      aarch64 wheels: what sf-edge needs
test-wheels/ aarch64 wheels: what its tests need beside them
roots/NAME/  one root folder per profile
libinstruction_counter.so
toolkit.json
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.arm.profiles import Profile
from sf_contract.errors import MismatchError, UsageError

QEMU: Final = "qemu-aarch64"
PYTHON_VERSION: Final = "3.11"
MANIFEST_FILE: Final = "toolkit.json"
COUNTER_FILE: Final = "libinstruction_counter.so"
_TIMEOUT_S: Final = 3600.0


class ToolMissing(UsageError):
    """A program or the toolkit is not installed."""


class EmulationFailed(MismatchError):
    """An emulated program did not end well."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a toolkit was made from; another recipe means that it must be made again.

    Attributes:
        format: raised when the folder's layout changes.
        wheels: `name==version` of every wheel that sf-edge needs.
        test_wheels: of every wheel that its tests need beside them.
        counter_sha256: of the plugin's source.
        profiles_sha256: of the profiles' `/proc/cpuinfo` files.
    """

    format: int
    wheels: tuple[str, ...]
    test_wheels: tuple[str, ...]
    counter_sha256: str
    profiles_sha256: str


class Toolkit(msgspec.Struct, frozen=True):
    """A toolkit folder."""

    folder: Path

    @property
    def system(self) -> Path:
        """The unpacked packages."""
        return self.folder / "system"

    @property
    def wheels(self) -> Path:
        """The unpacked wheels."""
        return self.folder / "wheels"

    @property
    def test_wheels(self) -> Path:
        """The unpacked wheels that only tests need."""
        return self.folder / "test-wheels"

    @property
    def counter(self) -> Path:
        """The plugin."""
        return self.folder / COUNTER_FILE

    def root(self, profile: Profile) -> Path:
        """What a profile's programs see as `/`."""
        return self.folder / "roots" / profile.name

    def recipe(self) -> Recipe | None:
        """What it was made from; None when it is not there or not whole."""
        try:
            return msgspec.json.decode((self.folder / MANIFEST_FILE).read_bytes(), type=Recipe)
        except (OSError, msgspec.DecodeError):
            return None


def default_folder() -> Path:
    """`splitfrozen/arm` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "splitfrozen" / "arm"


def open_toolkit(folder: Path, *, which: Callable[[str], str | None] = shutil.which) -> Toolkit:
    """The toolkit, when it is ready for use.

    Raises:
        ToolMissing: it was never made, or QEMU is gone.
    """
    toolkit = Toolkit(folder.resolve())
    if which(QEMU) is None:
        raise ToolMissing(f"{QEMU} is not installed", cure="install it (Debian: apt-get install qemu-user)")
    if toolkit.recipe() is None:
        raise ToolMissing(f"no toolkit for emulated ARM in {folder}", cure="run sf-bench arm-setup once")
    return toolkit


def emulator_command(
    toolkit: Toolkit,
    profile: Profile,
    arguments: Sequence[str],
    *,
    code: Path | None = None,
    counts: Path | None = None,
    with_tests: bool = False,
) -> list[str]:
    """Command line of an emulated Python.

    Args:
        toolkit: where everything lies.
        profile: the processor to emulate.
        arguments: of Python.
        code: a folder to import from, beside the wheels.
        counts: file for the instruction counts; nothing is counted without it.
        with_tests: also import what only tests need.
    """
    plugin = [] if counts is None else ["-plugin", f"{toolkit.counter},out={counts}"]
    tests = toolkit.test_wheels if with_tests else None
    path = os.pathsep.join(str(each) for each in (toolkit.wheels, code, tests) if each is not None)
    environment = {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    given = [part for name, value in environment.items() for part in ("-E", f"{name}={value}")]
    python = toolkit.system / "usr" / "bin" / f"python{PYTHON_VERSION}"
    root = str(toolkit.root(profile))
    return [QEMU, "-cpu", profile.qemu_cpu, *plugin, "-L", root, *given, str(python), "-P", *arguments]


def run_emulated(command: Sequence[str], profile: Profile) -> str:
    """Standard output of an emulated program.

    Raises:
        EmulationFailed: it ended with an error, by a signal, or not within an hour.
    """
    # The host's library path would make the emulated loader look at libraries of the host.
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "LD_PRELOAD")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as problem:
        raise EmulationFailed(
            f"the program on emulated {profile.name} did not end within {_TIMEOUT_S:.0f} s",
            cure="give fewer tokens or repeats",
        ) from problem
    if done.returncode != 0:
        raise EmulationFailed(
            f"the program on emulated {profile.name} ended with {done.returncode}: {_last_line(done.stderr)}",
            cure="run sf-bench arm-setup, which checks every profile",
        )
    return done.stdout


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
