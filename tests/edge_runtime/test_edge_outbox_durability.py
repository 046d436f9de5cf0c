"""What a power cut, a full disk and a jumping clock can do to the outbox: nothing that was committed is lost."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import sf_edge
from sf_contract.activations import EncodedSample
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.errors import DiskFull, StoreError
from sf_contract.messages import Role, Stored
from sf_edge.outbox.place import DATABASE_FILE
from sf_edge.outbox.queue import Outbox, read_outbox_status
from sf_edge.outbox.records import Owner
from sf_edge.sources import SourcePosition

OWNER = Owner(bundle_id="a" * 64, device="pi", codec=WireCodec.INT8, hidden=70)
WAL_FILE = f"{DATABASE_FILE}-wal"
GROUPS = 6
PROGRAM = "import sys; from sf_edge.main import main; sys.exit(main())"


def open_outbox(folder: Path) -> Outbox:
    return Outbox(folder, owner=OWNER, max_bytes=1 << 30)


def add(outbox: Outbox, count: int) -> None:
    rows = encode_rows(np.ones((3, OWNER.hidden), dtype=np.float32), WireCodec.INT8)
    for _ in range(count):
        ordinal = outbox.next_ordinal
        position = SourcePosition(ordinal + 1, f"d{ordinal}", 10 * (ordinal + 1), "rows")
        outbox.append(EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows), position)
        outbox.counters.samples += 1


@dataclass(frozen=True)
class State:
    next_ordinal: int
    line: int
    samples: int
    waiting: list[int]


def state_of(outbox: Outbox) -> State:
    waiting = [offer.ordinal for offer in outbox.offers(after=-1, limit=1000)]
    return State(
        outbox.next_ordinal, outbox.positions["rows"].line if outbox.positions else 0, outbox.counters.samples, waiting
    )


@dataclass(frozen=True)
class Crash:
    """Database and log as a power cut leaves them, and for every commit the size of the log and the state then."""

    folder: Path
    commits: list[tuple[int, State]]

    def after(self, wal: bytes, name: str) -> State:
        folder = self.folder.with_name(name)
        folder.mkdir()
        shutil.copy(self.folder / DATABASE_FILE, folder)
        (folder / WAL_FILE).write_bytes(wal)
        with open_outbox(folder) as outbox:
            found = state_of(outbox)
            add(outbox, 1)
            outbox.commit()
        with open_outbox(folder) as outbox:
            assert outbox.next_ordinal == found.next_ordinal + 1, "it goes on from there"
        return found

    def newest_within(self, nbytes: int) -> State:
        """The state of the last commit whose log was whole within so many bytes."""
        return [state for size, state in self.commits if size <= nbytes][-1]


@pytest.fixture
def crash(tmp_path: Path) -> Crash:
    folder = tmp_path / "crashed"
    folder.mkdir()
    commits = []
    with open_outbox(tmp_path / "outbox") as outbox:
        wal = tmp_path / "outbox" / WAL_FILE
        commits.append((wal.stat().st_size, state_of(outbox)))
        for group in range(GROUPS):
            add(outbox, 3)
            outbox.mark_sent([outbox.next_ordinal - 1])
            outbox.settle([Stored(group)])
            outbox.commit()
            commits.append((wal.stat().st_size, state_of(outbox)))
        for name in (DATABASE_FILE, WAL_FILE):
            shutil.copy(tmp_path / "outbox" / name, folder)
    assert len({size for size, _ in commits}) == GROUPS + 1, "no commit was checkpointed away"
    return Crash(folder, commits)


def test_a_log_cut_off_anywhere_opens_to_the_last_commit_before_the_cut(
    crash: Crash, seeded: np.random.Generator
) -> None:
    wal = (crash.folder / WAL_FILE).read_bytes()
    assert crash.after(wal, "whole") == crash.commits[-1][1]
    first = crash.commits[0][0]
    cuts = [1, 7, 24, *seeded.integers(1, len(wal) - first, size=20).tolist()]
    for number, cut in enumerate(cuts):
        found = crash.after(wal[: len(wal) - cut], f"cut{number}")
        assert found == crash.newest_within(len(wal) - cut), f"cut off {cut} bytes"


def test_a_log_with_a_damaged_end_opens_to_the_last_commit_before_the_damage(
    crash: Crash, seeded: np.random.Generator
) -> None:
    wal = (crash.folder / WAL_FILE).read_bytes()
    first = crash.commits[0][0]
    for number in range(20):
        start = int(seeded.integers(first, len(wal)))
        noise = seeded.integers(0, 256, size=len(wal) - start, dtype=np.uint8).tobytes()
        assert crash.after(wal[:start] + noise, f"noise{number}") == crash.newest_within(start), f"noise from {start}"


def test_a_transaction_that_was_being_written_is_as_if_it_had_not_begun(crash: Crash) -> None:
    wal = (crash.folder / WAL_FILE).read_bytes()
    frame = wal[crash.commits[-2][0] :]
    for number, torn in enumerate((frame[:100], bytes(5000), frame)):
        assert crash.after(wal + torn, f"torn{number}") == crash.commits[-1][1]


def _small_file_system(folder: Path, size: str, command: list[str], keep: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with a small file system mounted on a folder, and keep a copy of what it left there."""
    script = (
        'mount -t tmpfs -o size="$1" none "$2" && shift && at="$1" && keep="$2" && shift 2 && "$@"; '
        'code=$?; cp -a "$at/." "$keep"; exit $code'
    )
    words = ["unshare", "-Urm", "sh", "-c", script, "sh", size, str(folder), str(keep), *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_a_full_file_system_ends_the_run_with_19_and_loses_nothing(edge, server, make_server, tmp_path) -> None:
    for name in ("disk", "kept"):
        (tmp_path / name).mkdir()
    if _small_file_system(tmp_path / "disk", "1m", ["true"], tmp_path / "kept").returncode != 0:
        pytest.skip("this machine does not let a user mount a file system of his own (unshare -Urm)")
    data = edge.write(600)
    options = edge.options(make_server(), data, outbox=tmp_path / "disk" / "o")
    words = [word for name, value in options.items() for word in _words(name, value)]
    run = [sys.executable, "-c", PROGRAM, "run", *words]
    done = _small_file_system(tmp_path / "disk", "400k", run, tmp_path / "kept")
    assert done.returncode == 19, done.stderr
    assert "no room left for the outbox" in done.stderr
    before = read_outbox_status(tmp_path / "kept" / "o")
    assert 0 < before.waiting_samples < 600
    assert before.waiting_samples == before.counters.samples
    summary = edge.run(server, data, outbox=tmp_path / "kept" / "o", json=True).summary
    assert summary["forward_passes"] == summary["acknowledged"] == 600
    assert server.ordinals() == list(range(600))


def _words(name: str, value: object) -> list[str]:
    option = "--" + name.replace("_", "-")
    return [option] if value is True else [option, str(value)]


def test_a_limit_on_the_size_of_files_counts_as_a_full_disk(edge, make_server) -> None:
    options = edge.options(make_server(), edge.write(600))
    words = [word for name, value in options.items() for word in _words(name, value)]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); {PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", limited, "run", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 19, done.stderr
    assert read_outbox_status(edge.outbox).waiting_samples > 0


def test_a_disk_that_fails_is_not_called_full(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        add(outbox, 1)
        outbox.commit()
    database = tmp_path / DATABASE_FILE
    database.write_bytes(database.read_bytes()[:4096] + b"\xff" * (database.stat().st_size - 4096))
    with pytest.raises(StoreError), open_outbox(tmp_path) as outbox:
        add(outbox, 50)
        outbox.commit()


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EROFS, StoreError), (errno.EACCES, StoreError), (errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull)],
)
def test_an_outbox_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        error, match=f"{tmp_path}.*{'no room' if error is DiskFull else os.strerror(number)}|no room.*{tmp_path}"
    ):
        open_outbox(tmp_path)


def test_neither_outbox_nor_sources_nor_session_know_the_time_of_day() -> None:
    folder = Path(sf_edge.__path__[0])
    files = [*folder.glob("outbox*.py"), *folder.glob("sources/*.py"), folder / "session.py", folder / "loop.py"]
    assert len(files) > 10
    for file in files:
        names = {
            node.module if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert names.isdisjoint({"time", "datetime"}), file.name
        assert "wall_s" not in file.read_text(), file.name
