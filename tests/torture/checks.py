"""What must be true after torture: the store holds what the devices had, and nothing else."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections import Counter

from sf_contract.front_end import open_front_end
from sf_contract.samples import tokenize
from sf_contract.tokenizer import open_tokenizer
from torture.wide_bundle import MOST_WORDS, is_usable, row
from torture.world import PATIENCE_S, Device, TortureFailed, World

StoredRow = tuple[int, int, int, bytes]


async def deliver_the_rest(world: World) -> None:
    """Without faults from now on, every device delivers what it has, and finishes."""
    for device in world.devices:
        device.child.send(signal.SIGTERM)
    for device in world.devices:
        code = await asyncio.to_thread(device.child.ended, timeout_s=PATIENCE_S)
        if code != 128 + signal.SIGTERM:
            raise TortureFailed(f"{device.name} ended with {code} after SIGTERM\n{device.child.tail()}")
        world.start_device(device, to_the_end=True)
    for device in world.devices:
        code = await asyncio.to_thread(device.child.ended, timeout_s=2 * PATIENCE_S)
        if code != 0:
            raise TortureFailed(f"{device.name} could not finish: exit code {code}\n{device.child.tail()}")
    await world.stop_ingest()


def problems_in_the_end(world: World) -> list[str]:
    """Everything that is wrong; nothing is."""
    found = [problem for device in world.devices for problem in _device_problems(world, device)]
    for child in (world.ingest, *(device.child for device in world.devices)):
        found += child.complaints()
    return found


def _device_problems(world: World, device: Device) -> list[str]:
    stored = _stored_rows(world, device)
    expected = _expected_rows(world, device)
    summary = json.loads(device.summary.read_text())
    told = {name: summary[name] for name in ("rows", "samples", "acknowledged", "waiting", "rejected", "skipped")}
    right = {
        "rows": device.rows, "samples": len(expected), "acknowledged": len(expected), "waiting": 0, "rejected": 0,
        "skipped": device.rows - len(expected),
    }  # fmt: skip
    found = [f"{device.name} says {told}, not {right}"] if told != right else []
    times = Counter(ordinal for ordinal, *_ in stored)
    lost = len(expected) - len(times)
    twice = sum(count - 1 for count in times.values())
    wrong = sum(one != other for one, other in zip(stored, expected, strict=False))
    if lost or twice or wrong:
        found.append(f"{device.name}: {lost} samples lost, {twice} stored twice, {wrong} not what they should be")
    return found


def _stored_rows(world: World, device: Device) -> list[StoredRow]:
    connection = sqlite3.connect(f"file:{world.run.store_path}?mode=ro", uri=True)
    try:
        return connection.execute(
            "SELECT ordinal, label, tokens, rows FROM samples WHERE device = ? ORDER BY ordinal, outbox", (device.name,)
        ).fetchall()
    finally:
        connection.close()


def _expected_rows(world: World, device: Device) -> list[StoredRow]:
    """Computed here, from the texts."""
    spec = world.bundle.manifest.task
    tokenizer, front_end = open_tokenizer(world.bundle), open_front_end(world.bundle)
    found: list[StoredRow] = []
    for number in filter(is_usable, range(device.rows)):
        made = tokenize(row(world.seed, device.index, number), spec, tokenizer, max_tokens=MOST_WORDS)
        (encoded,) = front_end.run([made.token_ids])
        assert made.label is not None
        found.append((len(found), made.label, len(made.token_ids), encoded.rows.tobytes()))
    return found
