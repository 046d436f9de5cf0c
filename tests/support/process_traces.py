"""What a process does besides computing, seen from outside: its threads, the files it writes, its connections."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """A living process: names of its threads, files that it holds open for writing, remote ports of its TCP connections,
    unnamed local sockets (both ends of a pair inside of it), and how many sockets of any other kind it has."""

    threads: tuple[str, ...]
    writable: frozenset[Path]
    remote_ports: frozenset[int]
    unnamed_sockets: int
    other_sockets: int


def look_at(pid: int) -> Seen:
    """What `/proc` tells of a process."""
    proc = Path(f"/proc/{pid}")
    targets = dict(_descriptors(proc))
    inodes = {target[8:-1] for target in targets.values() if target.startswith("socket:[")}
    ports = {line[1]: line[0] for line in _connections(proc) if line[1] in inodes}
    unnamed = inodes & set(_unnamed(proc))
    files = {name: Path(target) for name, target in targets.items() if target.startswith("/")}
    return Seen(
        threads=tuple(sorted((task / "comm").read_text().strip() for task in (proc / "task").iterdir())),
        writable=frozenset(path for name, path in files.items() if _is_writable(proc, name)),
        remote_ports=frozenset(ports.values()),
        unnamed_sockets=len(unnamed),
        other_sockets=len(inodes - {*ports} - unnamed),
    )


@dataclass(frozen=True)
class Calls:
    """System calls of a whole run: files opened for writing or made, sockets, threads and processes started."""

    written: frozenset[str]
    sockets: tuple[str, ...]
    started: int


def trace(strace: str, command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> Calls:
    """Run a command to its success under strace."""
    wanted = "trace=open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,socket,clone,clone3,fork,vfork"
    subprocess.run([strace, "-f", "-qq", "-s", "4096", "-e", wanted, "-o", log, *command], check=True, env=env)
    lines = log.read_text(errors="replace").splitlines()
    return Calls(
        written=frozenset(filter(None, map(_written, lines))),
        sockets=tuple(line for line in lines if re.search(r"\bsocket\(", line)),
        started=sum(bool(re.search(r"\b(clone3?|v?fork)\(", line)) for line in lines),
    )


def _written(line: str) -> str | None:
    is_writing = re.search(r"\b(creat|mkdir(at)?|rename\w*)\(", line) or re.search(r"O_(WRONLY|RDWR|CREAT)", line)
    path = re.search(r'"([^"]*)"', line)
    return path[1] if is_writing and path and " = -1 " not in line else None


def _descriptors(proc: Path) -> Iterator[tuple[str, str]]:
    for entry in (proc / "fd").iterdir():
        try:
            yield entry.name, str(entry.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue


def _is_writable(proc: Path, name: str) -> bool:
    try:
        found = re.search(r"flags:\s*0*([0-7]+)", (proc / "fdinfo" / name).read_text())
    except FileNotFoundError:
        return False
    return found is not None and int(found[1], 8) & os.O_ACCMODE != os.O_RDONLY


def _connections(proc: Path) -> Iterator[tuple[int, str]]:
    """Remote port and inode of every TCP connection."""
    for table in ("tcp", "tcp6"):
        for line in (proc / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            yield int(fields[2].rpartition(":")[2], 16), fields[9]


def _unnamed(proc: Path) -> Iterator[str]:
    """Inodes of local sockets without a name."""
    for line in (proc / "net" / "unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) == 7:
            yield fields[6]
