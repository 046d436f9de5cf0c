"""Making faults happen, one after another on each device and on the server, all at the same time."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, field

from sf_bench.link_script import Become, HalfOpen, Heal, LinkAction
from sf_bench.link_script import Kind as LinkKind
from torture.children import MAY_END_WITH_FULL_DISK, Child
from torture.faults import Fault, Plan, Planned
from torture.world import NARROW, PATIENCE_S, Device, TortureFailed, World


@dataclass
class Record:
    """How long it took from each fault to the next stored sample, in seconds, by kind."""

    recoveries_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def faults(self) -> int:
        """How many faults have happened."""
        return sum(map(len, self.recoveries_s.values()))


async def torture(world: World, plan: Plan, record: Record) -> None:
    """Make every planned fault happen, and see things go on after each."""
    watching = asyncio.create_task(world.watch())
    lanes = [asyncio.create_task(_server_lane(world, plan.server, record))]
    for device, faults in zip(world.devices, plan.devices, strict=True):
        lanes.append(asyncio.create_task(_device_lane(world, device, faults, record)))
    try:
        await _all_or_first_problem(watching, lanes)
    finally:
        for task in (watching, *lanes):
            task.cancel()
        await asyncio.gather(watching, *lanes, return_exceptions=True)


async def _all_or_first_problem(watching: asyncio.Task[None], lanes: list[asyncio.Task[None]]) -> None:
    waiting: set[asyncio.Task[None]] = {watching, *lanes}
    while waiting != {watching}:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _device_lane(world: World, device: Device, faults: tuple[Planned, ...], record: Record) -> None:
    await world.progress(device, after="the start")
    for fault in faults:
        if fault.action is not None:
            await _spoil_link(world, device, fault, fault.action)
        else:
            async with device.lock:
                await _spoil_device(world, device, fault)
        await _recover(world, device, fault, record)
        if isinstance(fault.action, HalfOpen):
            device.proxy.apply(Heal())


async def _server_lane(world: World, faults: tuple[Planned, ...], record: Record) -> None:
    await world.progress(None, after="the start")
    for fault in faults:
        async with world.ingest_lock:
            await _spoil_server(world, fault)
        if fault.kind is Fault.STORE_FULL:
            await _wake_devices(world)
        await _recover(world, None, fault, record)


async def _recover(world: World, device: Device | None, fault: Planned, record: Record) -> None:
    started_s = time.monotonic()
    if device is not None and fault.kind in (Fault.KILL_EDGE, Fault.EDGE_DISK_FULL):
        await world.until(device.child.is_ready, f"start of {device.name}", child=device.child)
    await world.progress(device, after=f"{fault.kind} ({fault.action})")
    record.recoveries_s[str(fault.kind)].append(time.monotonic() - started_s)


async def _spoil_link(world: World, device: Device, fault: Planned, action: LinkAction) -> None:
    has_happened = device.proxy.apply(action)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await has_happened.wait()
    except TimeoutError:
        raise TortureFailed(f"nothing went over the link of {device.name}\n{device.child.tail()}") from None
    if fault.kind is LinkKind.DELAY:
        await asyncio.sleep(fault.lasts_s)
        device.proxy.apply(Become(NARROW))


async def _spoil_device(world: World, device: Device, fault: Planned) -> None:
    match fault.kind:
        case Fault.KILL_EDGE:
            device.child.kill()
            world.start_device(device)
        case Fault.STOP_EDGE:
            await _stop_for(device.child, fault.lasts_s)
        case Fault.EDGE_DISK_FULL:
            await _end_with_full_disk(device.child)
            world.start_device(device)
        case _:
            raise TortureFailed(f"{fault.kind} is no fault of a device")


async def _spoil_server(world: World, fault: Planned) -> None:
    match fault.kind:
        case Fault.KILL_INGEST:
            world.ingest.kill()
            await world.start_ingest()
        case Fault.STOP_INGEST:
            await _stop_for(world.ingest, 2 * fault.lasts_s)
        case Fault.INGEST_DISK_FULL:
            await _end_with_full_disk(world.ingest)
            await world.start_ingest()
        case Fault.STORE_FULL:
            await _fill_store(world)
        case _:
            raise TortureFailed(f"{fault.kind} is no fault of the server")


async def _stop_for(child: Child, lasts_s: float) -> None:
    child.send(signal.SIGSTOP)
    await asyncio.sleep(lasts_s)
    child.send(signal.SIGCONT)


async def _end_with_full_disk(child: Child) -> None:
    """A process whose disk is full must end by itself, with a named error."""
    child.fill_disk()
    code = await asyncio.to_thread(child.ended, timeout_s=PATIENCE_S)
    if code not in MAY_END_WITH_FULL_DISK:
        raise TortureFailed(f"{child.name} ended with {code} on a full disk\n{child.tail()}")


async def _fill_store(world: World) -> None:
    """Reach the store's quota, see that devices are told to wait, and raise it again."""
    await world.stop_ingest()
    world.set_quota(world.smallest_quota())
    await world.start_ingest()
    await world.until(
        lambda: "no room left" in world.ingest.log.read_text("utf-8", "replace"), "full store", child=world.ingest
    )
    await world.stop_ingest()
    world.set_quota(None)
    await world.start_ingest()


async def _wake_devices(world: World) -> None:
    """Devices were told to wait half a minute. The first one does; the others are killed, and greet at once."""
    for device in world.devices[1:]:
        async with device.lock:
            if device.child.process.poll() is None:
                device.child.kill()
            world.start_device(device)
