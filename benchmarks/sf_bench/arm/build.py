"""Making the toolkit: packages, wheels, plugin, profiles; and proving that it works."""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.arm.counts import parse_marks, summarize_counts
from sf_bench.arm.debian import KEYRING, run_tool, unpack_packages
from sf_bench.arm.profiles import PROFILES, Profile, write_profile_root
from sf_bench.arm.toolkit import (
    MANIFEST_FILE,
    PYTHON_VERSION,
    QEMU,
    EmulationFailed,
    Recipe,
    Toolkit,
    ToolMissing,
    emulator_command,
    run_emulated,
)
from sf_contract.errors import UsageError

_FORMAT: Final = 2
_TOOLS: Final = {QEMU: "qemu-user", "gcc": "gcc", "apt-get": "apt", "dpkg-deb": "dpkg"}
"""Programs, and the Debian packages they come in."""
_PACKAGES: Final = (f"python{PYTHON_VERSION}-minimal", f"libpython{PYTHON_VERSION}-stdlib", "libstdc++6", "libgcc-s1")
_WHEELS: Final = ("numpy", "msgspec", "onnxruntime", "pyzmq", "tokenizers", "PyNaCl", "cffi")
"""What `sf-edge` needs: the packages of `requirements-edge.txt`."""
_TEST_WHEELS: Final = (
    *("pytest", "pytest-timeout", "iniconfig", "pluggy", "packaging", "Pygments", "hypothesis", "sortedcontainers"),
    *("onnx", "ml_dtypes", "protobuf", "typing_extensions"),
)
"""What the tests of the device need beside it."""
_GLIBC_TAGS: Final = (
    *(f"manylinux_2_{minor}_aarch64" for minor in (34, 28, 27, 26, 17)),
    "manylinux2014_aarch64",
)
"""pip does not count one tag as implying the older ones."""
_SOURCE: Final = "instruction_counter.c"
_PROBE: Final = """
import os, platform
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
os.getppid()
for _ in range(10000): pass
os.getppid()
print(platform.machine(), onnxruntime.__version__)
"""
_PROBE_LOOPS: Final = 10_000


def missing_tools(which: Callable[[str], str | None], *, keyring: Path = KEYRING) -> list[str]:
    """Debian packages that must be installed before a toolkit can be made."""
    missing = [package for program, package in _TOOLS.items() if which(program) is None]
    return missing if keyring.exists() else [*missing, "debian-archive-keyring"]


def current_recipe() -> Recipe:
    """What a toolkit would be made from today: the same versions that this machine's own environment has."""
    return Recipe(
        format=_FORMAT,
        wheels=_pinned(_WHEELS),
        test_wheels=_pinned(_TEST_WHEELS),
        counter_sha256=hashlib.sha256(_counter_source()).hexdigest(),
        profiles_sha256=_digest(f"{profile.name} {profile.cpuinfo}" for profile in PROFILES.values()),
    )


def make_toolkit(
    folder: Path,
    *,
    say: Callable[[str], None],
    rebuild: bool,
    which: Callable[[str], str | None] = shutil.which,
    prove_with: Sequence[Profile] = tuple(PROFILES.values()),
) -> Toolkit:
    """Make the toolkit where it is missing or out of date, and prove every profile, or those named.

    Raises:
        ToolMissing: programs are missing on this machine; the cure names the packages.
        DownloadFailed: apt or pip cannot bring something.
        EmulationFailed: a profile's programs do not run.
        UsageError: the folder holds other things.
    """
    if missing := missing_tools(which):
        raise ToolMissing(
            f"{', '.join(missing)} must be installed first", cure=f"as root: apt-get install {' '.join(missing)}"
        )
    toolkit = Toolkit(folder.resolve())
    recipe = current_recipe()
    if rebuild or toolkit.recipe() != recipe:
        _build(toolkit, recipe, say)
    else:
        say(f"{folder} is up to date")
    for profile in prove_with:
        say(f"EMULATED {profile.name} ({profile.board}): {prove(toolkit, profile)}")
    return toolkit


def prove(toolkit: Toolkit, profile: Profile) -> str:
    """Import ONNX Runtime on an emulated processor and count a loop; what the program says about itself.

    Raises:
        EmulationFailed: it does not run, or the count cannot be right.
    """
    with tempfile.TemporaryDirectory() as work:
        counts = Path(work) / "counts"
        said = run_emulated(emulator_command(toolkit, profile, ["-c", _PROBE], counts=counts), profile)
        per_loop = summarize_counts(parse_marks(counts.read_text(encoding="ascii"))[-2:], units=_PROBE_LOOPS).total
    if not 5 <= per_loop <= 500:
        raise EmulationFailed(
            f"the instruction counter sees {per_loop:.1f} instructions in a round of an empty Python loop",
            cure="use QEMU 7.2, as Debian 12 has it",
        )
    return said.strip()


def _build(toolkit: Toolkit, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Everything is made under its final path, and counts as made once the manifest is there."""
    folder = toolkit.folder
    _claim(folder)
    for part in (toolkit.system, toolkit.wheels, toolkit.test_wheels, folder / "roots", folder / "work"):
        shutil.rmtree(part, ignore_errors=True)
    say("1/4 unpacking Debian packages for arm64")
    unpack_packages(_PACKAGES, into=toolkit.system, work=folder / "work")
    say("2/4 unpacking aarch64 wheels")
    _unpack_wheels(toolkit.wheels, recipe.wheels)
    _unpack_wheels(toolkit.test_wheels, recipe.test_wheels)
    say("3/4 compiling the instruction counter and the Python files")
    _compile_counter(toolkit)
    _compile_python(toolkit)
    say("4/4 writing the profiles")
    for profile in PROFILES.values():
        write_profile_root(toolkit.root(profile), profile, system=toolkit.system)
    shutil.rmtree(folder / "work")
    (folder / MANIFEST_FILE).write_bytes(msgspec.json.encode(recipe))


def _claim(folder: Path) -> None:
    """Take a folder that is empty, missing or a toolkit already: parts of it will be emptied."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST_FILE
    if any(folder.iterdir()) and not manifest.exists():
        raise UsageError(f"{folder} holds other things than a toolkit", cure="give --into an empty or a new folder")
    manifest.write_bytes(b"{}")  # no recipe: what is unfinished does not pass for a toolkit


def _pinned(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}=={metadata.version(name)}" for name in names)


def _unpack_wheels(into: Path, wheels: Sequence[str]) -> None:
    tags = [part for tag in _GLIBC_TAGS for part in ("--platform", tag)]
    run_tool(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON_VERSION, *tags),
            *("--no-compile", "--target", str(into), *wheels),
        ],
        doing="downloading aarch64 wheels",
        cure="check that pip can download on this machine, and that these versions have aarch64 wheels",
    )


def _compile_counter(toolkit: Toolkit) -> None:
    source = toolkit.folder / _SOURCE
    source.write_bytes(_counter_source())
    run_tool(
        ["gcc", "-O2", "-shared", "-fPIC", "-o", str(toolkit.counter), str(source)],
        doing="compiling the instruction counter",
        cure="install gcc and libc6-dev",
    )


def _compile_python(toolkit: Toolkit) -> None:
    """Bytecode is the same on every architecture; made here, the emulated start takes half the time."""
    if sys.version_info[:2] != tuple(map(int, PYTHON_VERSION.split("."))):
        return
    for folder in (toolkit.wheels, toolkit.test_wheels, toolkit.system / "usr" / "lib" / f"python{PYTHON_VERSION}"):
        compileall.compile_dir(folder, quiet=2, workers=1, force=False)


def _counter_source() -> bytes:
    return resources.files("sf_bench.arm").joinpath(_SOURCE).read_bytes()


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256(os.linesep.join(parts).encode()).hexdigest()
