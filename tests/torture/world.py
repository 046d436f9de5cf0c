"""Devices, their links and a server, all real; and a watch over what the server has stored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.link_proxy import LinkProxy
from sf_bench.link_script import LinkProfile
from sf_contract.bundle import Bundle
from sf_contract.limits import KIB, MIB
from sf_contract.link_keys import make_link_key
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings
from sf_server.store.file import CACHE_BYTES
from torture.children import GROWTH_BYTES, Child, edge_arguments, ingest_arguments
from torture.wide_bundle import is_usable, row

NARROW: Final = LinkProfile("narrow", delay_s=0.002, jitter_s=0.002, bytes_per_s=40_000.0)
"""About 15 samples each second, so that there is always something under way."""

BACKLOG_ROWS: Final = 60
"""Rows that a device has and the server has not, at least."""

CREDIT_BYTES: Final = 64 * KIB
OUTBOX_BYTES: Final = 64 * KIB
POLL_S: Final = 0.05
LOOK_EVERY: Final = 10
PATIENCE_S: Final = 90.0


class TortureFailed(AssertionError):
    """Something that must never happen has happened."""


class Device:
    """A device: its data, its link, its process. Whoever holds `lock` may start and end the process."""

    def __init__(self, index: int, folder: Path, *, logs: Path) -> None:
        self.index = index
        self.name = f"device-{index}"
        self.child = Child(self.name, logs, says_when_ready="passed its self-test")
        self.lock = asyncio.Lock()
        self.data = folder / f"{self.name}.jsonl"
        self.outbox = folder / f"outbox-{index}"
        self.summary = folder / f"{self.name}.json"
        self.key = make_link_key(folder / f"{self.name}.key")
        self.rows = 0
        self.samples = 0
        self.proxy = LinkProxy("127.0.0.1", 1, profile=NARROW, seed=index)
        self.address = ""

    def write_rows(self, seed: int, rows: int) -> None:
        """Append rows to the data, whole lines at once."""
        numbers = range(self.rows, self.rows + rows)
        with self.data.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row(seed, self.index, number)) + "\n" for number in numbers))
        self.rows += rows
        self.samples += sum(map(is_usable, numbers))


class World:
    """Everything, in one folder. Use it inside one event loop."""

    def __init__(self, folder: Path, bundle: Bundle, *, seed: int, devices: int) -> None:
        self.bundle = bundle
        self.seed = seed
        self.stored: dict[str, int] = {}
        self.run = RunFolder(folder / "run")
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.ingest = Child(
            "ingest", self.logs, says_when_ready="receiving devices", growth_bytes=GROWTH_BYTES + CACHE_BYTES
        )
        self.ingest_lock = asyncio.Lock()
        self.devices = [Device(index, folder, logs=self.logs) for index in range(devices)]
        self._key = make_link_key(folder / "server.key")
        self._changed = asyncio.Condition()
        self._reader: sqlite3.Connection | None = None
        self._settings = TrainSettings(
            bundle=str(bundle.folder), run=str(self.run.path), bind="tcp://127.0.0.1:*", credit_bytes=CREDIT_BYTES,
            expect_devices=devices, key=str(self._key.path), authorized=str(self._authorize(folder / "authorized")),
        )  # fmt: skip

    async def begin(self) -> None:
        """Start everything."""
        self.run.create(self._settings, bundle_ids=(self.bundle.bundle_id,))
        await self.start_ingest()
        for device in self.devices:
            device.address = await device.proxy.start()
            device.write_rows(self.seed, BACKLOG_ROWS)
            self.start_device(device)

    async def end(self) -> None:
        """Kill what is left."""
        for child in (self.ingest, *(device.child for device in self.devices)):
            if child.starts and child.process.poll() is None:
                child.kill()
        for device in self.devices:
            await device.proxy.close()
        if self._reader is not None:
            self._reader.close()

    def start_device(self, device: Device, *, to_the_end: bool = False) -> None:
        """Start a device's process: for as long as rows are appended, or to deliver what there is and finish."""
        settings: dict[str, object] = {
            "bundle": str(self.bundle.folder), "server": device.address, "data": str(device.data), "device": device.name,
            "outbox": str(device.outbox), "max_outbox_bytes": OUTBOX_BYTES, "give_up_after_s": 0, "threads": 1, "nice": 0,
            "no_governor": True, "watch": not to_the_end, "json": True,
            "key": str(device.key.path), "server_key": self._key.public.hex,
        }  # fmt: skip
        device.child.start(edge_arguments(settings), output=device.summary if to_the_end else None)

    async def start_ingest(self) -> None:
        """Start the server's receiving side and lead every link to it."""
        self.ingest.start(ingest_arguments(self.run.path))
        await self.until(self._ingest_listens, "ingest listening", child=self.ingest)
        record = self.run.ingest_record()
        assert record is not None
        for device in self.devices:
            device.proxy.port = int(record.address.rpartition(":")[2])

    async def stop_ingest(self) -> None:
        """SIGTERM, as the supervisor does it."""
        self.ingest.send(signal.SIGTERM)
        code = await asyncio.to_thread(self.ingest.ended)
        if code != 0:
            raise TortureFailed(f"ingest ended with {code} after SIGTERM\n{self.ingest.tail()}")

    def set_quota(self, max_store_bytes: int | None) -> None:
        """The store may become so large from the next start of ingest on; None is the usual size."""
        usual = self._settings.max_store_bytes
        changed = msgspec.structs.replace(self._settings, max_store_bytes=max_store_bytes or usual)
        self.run.resume(changed, bundle_ids=(self.bundle.bundle_id,))

    def smallest_quota(self) -> int:
        """A quota that leaves room for a few samples."""
        assert self._reader is not None
        (pages,) = self._reader.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = self._reader.execute("PRAGMA page_size").fetchone()
        return max(1 * MIB, (pages + 4) * page_bytes)

    async def until(
        self, condition: Callable[[], bool], what: str, *, child: Child, timeout_s: float = PATIENCE_S
    ) -> None:
        """Wait for a condition that the world does not announce."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise TortureFailed(f"no {what} within {timeout_s:g} s\n{child.tail()}")
            await asyncio.sleep(POLL_S / 2)

    async def progress(self, device: Device | None, *, after: str) -> None:
        """Wait until one more sample of a device (None: of any) is stored."""
        before = self._count(device)
        try:
            async with asyncio.timeout(PATIENCE_S), self._changed:
                await self._changed.wait_for(lambda: self._count(device) > before)
        except TimeoutError:
            who = self.devices if device is None else [device]
            tails = "\n".join(child.tail() for child in (self.ingest, *(one.child for one in who)))
            raise TortureFailed(f"nothing was stored for {PATIENCE_S:g} s after {after}\n{tails}") from None

    async def watch(self) -> None:
        """Follow the store, feed the devices, and see to it that no process ends that was not made to."""
        looks = 0
        while True:
            if self._read_counts():
                async with self._changed:
                    self._changed.notify_all()
            self._feed()
            self._insist_on_life()
            looks += 1
            if looks % LOOK_EVERY == 0:
                for child in (self.ingest, *(device.child for device in self.devices)):
                    child.look()
            await asyncio.sleep(POLL_S)

    def _authorize(self, folder: Path) -> Path:
        """The folder with the public keys of the devices."""
        folder.mkdir(mode=0o700)
        for device in self.devices:
            (folder / f"{device.name}.pub").write_text(device.key.public.line())
        return folder

    def _count(self, device: Device | None) -> int:
        return sum(self.stored.values()) if device is None else self.stored.get(device.name, 0)

    def _ingest_listens(self) -> bool:
        record = self.run.ingest_record()
        return record is not None and record.pid == self.ingest.process.pid

    def _read_counts(self) -> bool:
        """True when more is stored than before."""
        before = dict(self.stored)
        with contextlib.suppress(sqlite3.OperationalError):  # the tables are still being made
            if self._reader is None:
                self._reader = sqlite3.connect(f"file:{self.run.store_path}?mode=ro", uri=True)
            self.stored = dict(self._reader.execute("SELECT device, samples FROM devices").fetchall())
        return self.stored != before

    def _feed(self) -> None:
        for device in self.devices:
            missing = BACKLOG_ROWS - (device.samples - self._count(device))
            if missing > BACKLOG_ROWS // 3:
                device.write_rows(self.seed, missing)

    def _insist_on_life(self) -> None:
        owned = [(self.ingest, self.ingest_lock), *((device.child, device.lock) for device in self.devices)]
        for child, lock in owned:
            if not lock.locked() and child.process.poll() is not None:
                raise TortureFailed(f"{child.name} ended by itself with {child.process.returncode}\n{child.tail()}")
