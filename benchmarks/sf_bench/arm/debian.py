"""Packages of another architecture, unpacked into a folder with the system's own archives and without touching the system."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from sf_contract.errors import UsageError

ARCHITECTURE: Final = "arm64"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TARGET_FIELDS: Final = "$(REPO_URI) $(RELEASE) $(COMPONENT)"


class DownloadFailed(UsageError):
    """apt or pip could not bring what was asked for."""


def run_tool(command: Sequence[str], *, doing: str, cure: str) -> str:
    """Standard output of a program of this machine.

    Raises:
        DownloadFailed: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise DownloadFailed(f"{doing} failed: {said[-1] if said else f'exit code {done.returncode}'}", cure=cure)
    return done.stdout


def unpack_packages(names: Sequence[str], *, into: Path, work: Path) -> None:
    """Download packages for arm64 with all they depend on, and unpack them; nothing is installed or run.

    Args:
        names: packages.
        into: folder that becomes the root of the foreign system.
        work: an empty folder for apt's lists and files.

    Raises:
        DownloadFailed: the archives cannot be reached, or do not have the packages.
    """
    folders = apt_folders(work)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    targets = run_tool(
        ["apt-get", "indextargets", "--format", _TARGET_FIELDS, "Created-By: Packages"],
        doing="asking apt for its archives",
        cure="check the system's apt configuration",
    )
    (work / "sources.list").write_text(source_lines(targets), encoding="utf-8")
    (work / "status").touch()
    options = apt_options(work, folders)
    cure = "check that apt-get update works on this machine; this needs Debian 12 archives, which carry Python 3.11"
    run_tool(["apt-get", *options, "update"], doing="reading the package lists for arm64", cure=cure)
    download = ["apt-get", *options, "-y", "--download-only", "install", *names]
    run_tool(download, doing="downloading packages for arm64", cure=cure)
    into.mkdir(parents=True)
    for package in sorted((folders["Dir::Cache::archives"]).glob("*.deb")):
        run_tool(["dpkg-deb", "-x", str(package), str(into)], doing=f"unpacking {package.name}", cure=cure)
    for name in ("doc", "man", "locale"):
        shutil.rmtree(into / "usr" / "share" / name, ignore_errors=True)


def source_lines(targets: str) -> str:
    """apt's sources for the other architecture, from what `apt-get indextargets` says about this one's.

    Backports are left out: their packages belong to another Debian.
    """
    wanted = sorted({line for line in targets.splitlines() if line and "backports" not in line})
    return "".join(f"deb [arch={ARCHITECTURE} signed-by={KEYRING}] {line}\n" for line in wanted)


def apt_folders(work: Path) -> dict[str, Path]:
    """apt's folders below `work`, by option."""
    return {
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "cache",
        "Dir::Cache::archives": work / "archives",
        "Dir::Etc::preferencesparts": work / "preferences",
    }


def apt_options(work: Path, folders: Mapping[str, Path]) -> list[str]:
    """Options that keep apt away from the system's state: own lists, own cache, nothing installed, no locks."""
    options = {
        "APT::Architecture": ARCHITECTURE,
        "APT::Architectures": ARCHITECTURE,
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "1",
        "Dir::Etc::sourcelist": str(work / "sources.list"),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::status": str(work / "status"),
        **{name: str(folder) for name, folder in folders.items()},
    }
    return ["-q", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
