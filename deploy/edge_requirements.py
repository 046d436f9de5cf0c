"""Writes `requirements-edge.txt`: the device's packages with the versions of `constraints.txt` and the hashes of their wheels.

python deploy/edge_requirements.py                 # asks the package index that pip is configured for
python deploy/edge_requirements.py --check         # compares the file with constraints.txt; needs no network
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
FILE: Final = ROOT / "requirements-edge.txt"
CONSTRAINTS: Final = ROOT / "constraints.txt"
PACKAGES: Final = ("cffi", "msgspec", "numpy", "onnxruntime", "pynacl", "pyzmq", "tokenizers")
"""All that `sf-edge` imports, and nothing else. PyNaCl needs cffi's compiled part; the other dependencies that these packages
name (flatbuffers, protobuf, packaging, huggingface_hub, pycparser) are never imported by what runs on a device."""
PYTHONS: Final = ("3.11", "3.12", "3.13")
MACHINES: Final = ("x86_64", "aarch64")
_GLIBC_TAGS: Final = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17", "manylinux2014")
"""pip does not count one tag as implying the older ones. glibc 2.28 is Debian 10's."""
_HEADER: Final = f"""\
# What sf-edge needs on a device, and nothing else: {len(PACKAGES)} packages for CPython {", ".join(PYTHONS)} on
# {" and ".join(MACHINES)} (glibc 2.28 or newer).
#
#   pip install --no-deps --require-hashes --only-binary=:all: -r requirements-edge.txt
#
# Written by `make requirements-edge` from constraints.txt; `make check` compares the two.
"""
_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:(?P<hash>[0-9a-f]{64})")
_WHEEL = re.compile(r"^# (?P<wheel>\S+\.whl)$")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file of the package index."""

    name: str
    version: str
    file: str
    sha256: str

    def fits(self, *, python: str, machine: str) -> bool:
        """Whether its name says that it is for this Python and machine."""
        *_, interpreters, abi, platforms = self.file.removesuffix(".whl").split("-")
        tag = "cp" + python.replace(".", "")
        is_stable = abi == "abi3" and int(interpreters.removeprefix("cp3")) <= int(tag.removeprefix("cp3"))
        return (interpreters == tag or is_stable) and all(part.endswith(machine) for part in platforms.split("."))


def pins(constraints: str) -> dict[str, str]:
    """Versions by lower-case name."""
    found = (_REQUIREMENT.match(line) for line in constraints.splitlines())
    return {match["name"].lower(): match["version"] for match in found if match}


def render(wheels: Iterable[Wheel]) -> str:
    """The file's text: for each package its wheels' names as comments, then the pinned version with their hashes."""
    by_name: dict[str, dict[str, Wheel]] = {}
    for wheel in wheels:
        by_name.setdefault(wheel.name, {})[wheel.file] = wheel
    return _HEADER + "".join(_entry(name, list(files.values())) for name, files in sorted(by_name.items()))


def parse(text: str) -> list[Wheel]:
    """The wheels that a file names.

    Raises:
        ValueError: a package has not one hash per wheel named.
    """
    wheels: list[Wheel] = []
    names: list[str] = []
    for block in re.split(r"(?<!\\)\n", text):
        if match := _WHEEL.match(block):
            names.append(match["wheel"])
        elif required := _REQUIREMENT.match(block):
            hashes = _HASH.findall(block)
            if len(hashes) != len(names):
                raise ValueError(f"{required['name']} has {len(hashes)} hashes for {len(names)} wheels")
            pairs = zip(names, hashes, strict=True)
            wheels += [Wheel(required["name"], required["version"], file, digest) for file, digest in pairs]
            names = []
        elif block.strip() and not block.startswith("#"):
            raise ValueError(f"{block[:60]!r} is no requirement")
    return wheels


def problems(text: str, constraints: str) -> list[str]:
    """What is wrong with a requirements file: other packages, other versions, a Python or machine without a wheel."""
    wheels, pinned = parse(text), pins(constraints)
    names = {wheel.name for wheel in wheels}
    found = [f"{name} is not on the list of packages a device needs" for name in sorted(names - {*PACKAGES})]
    found += [f"{name} is missing" for name in sorted({*PACKAGES} - names)]
    versions = sorted({(wheel.name, wheel.version) for wheel in wheels})
    found += [
        f"{name}=={version}, but constraints.txt has {pinned.get(name)}"
        for name, version in versions
        if pinned.get(name) != version
    ]
    return found + list(_without_wheel(wheels, names))


def _without_wheel(wheels: Sequence[Wheel], names: Iterable[str]) -> Iterator[str]:
    for name in sorted(names):
        files = [wheel for wheel in wheels if wheel.name == name]
        for python, machine in ((python, machine) for python in PYTHONS for machine in MACHINES):
            if not any(wheel.fits(python=python, machine=machine) for wheel in files):
                yield f"{name} has no wheel for Python {python} on {machine}"


def _entry(name: str, wheels: Sequence[Wheel]) -> str:
    ordered = sorted(wheels, key=lambda wheel: wheel.file)
    comments = "".join(f"# {wheel.file}\n" for wheel in ordered)
    hashes = "".join(f" \\\n    --hash=sha256:{wheel.sha256}" for wheel in ordered)
    return f"\n{comments}{name}=={ordered[0].version}{hashes}\n"


def resolve(versions: Mapping[str, str], *, say: Callable[[str], None]) -> list[Wheel]:
    """What pip would install for every Python and machine; it downloads little or nothing for that.

    Raises:
        subprocess.CalledProcessError: pip found no wheel.
    """
    wheels: list[Wheel] = []
    for python in PYTHONS:
        for machine in MACHINES:
            say(f"Python {python} on {machine}")
            wheels += _resolve_one(versions, python=python, machine=machine)
    return wheels


def _resolve_one(versions: Mapping[str, str], *, python: str, machine: str) -> list[Wheel]:
    tags = [part for tag in _GLIBC_TAGS for part in ("--platform", f"{tag}_{machine}")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"),
                *("--disable-pip-version-check", "--only-binary=:all:", "--implementation", "cp"),
                *("--python-version", python, *tags, "--target", str(Path(folder) / "none"), "--report", str(report)),
                *(f"{name}=={version}" for name, version in versions.items()),
            ],
            check=True,
        )
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [_wheel(item["metadata"], item["download_info"]) for item in installed]


def _wheel(metadata: Mapping[str, str], download: Mapping[str, object]) -> Wheel:
    archive = download["archive_info"]
    if not isinstance(archive, dict):
        raise TypeError("pip's report names no archive")
    return Wheel(
        name=metadata["name"].lower(),
        version=metadata["version"],
        file=str(download["url"]).rpartition("/")[2],
        sha256=archive["hashes"]["sha256"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the file is out of date")
    given = parser.parse_args(argv)
    constraints = CONSTRAINTS.read_text(encoding="utf-8")
    if not given.check:
        pinned = pins(constraints)
        versions = {name: pinned[name] for name in PACKAGES}
        FILE.write_text(
            render(resolve(versions, say=lambda text: print(text, file=sys.stderr, flush=True))), encoding="utf-8"
        )
    found = problems(FILE.read_text(encoding="utf-8"), constraints)
    for problem in found:
        print(f"{FILE.name}: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
