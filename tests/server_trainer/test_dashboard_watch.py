from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf_contract.errors import StoreError
from sf_server.seeing.dashboard.changes import changed, full
from sf_server.seeing.dashboard.watch import Watch
from sf_server.seeing.state import (
    DeviceState,
    DeviceStatus,
    Phase,
    ProgressState,
    QueueState,
    RunInfo,
    RunState,
    SavingsState,
    StoreState,
)

EMPTY = RunState(
    taken_s=1.0,
    phase=Phase.WAITING,
    run=RunInfo(
        folder="run", base_model="m", task="t", labels=(), epochs=1, expect_devices=1, expect_samples=None, window_samples=1,
        learning_rate=0.1, address=None, bundles=(),
    ),
    progress=ProgressState(),
    loss_curve=(),
    validations=(),
    devices=(),
    store=StoreState(
        train_samples=0, validation_samples=0, train_tokens=0, validation_tokens=0, used_bytes=0, file_bytes=0,
        quota_bytes=1,
    ),
    queue=QueueState(untrained=0, lifted=None),
    savings=SavingsState(),
)  # fmt: skip


def _state(*, taken_s: float = 1.0, step: int = 0, samples: dict[str, int] | None = None) -> RunState:
    devices = tuple(_device(name, count) for name, count in sorted((samples or {}).items()))
    return msgspec.structs.replace(EMPTY, taken_s=taken_s, progress=ProgressState(step=step), devices=devices)


def _device(name: str, samples: int) -> DeviceState:
    return DeviceState(
        name=name, cut=None, status=DeviceStatus.SENDING, reason="", samples=samples, samples_per_s=None, bytes_in=0,
        bytes_out=0, last_seen_s=0.0, repeats=0, rejected=0, skipped=0, malformed=0, outboxes=1,
    )  # fmt: skip


def _as_a_page_does(state: bytes, change: bytes) -> RunState:
    """What page/run.js does with a change."""
    known, parts = msgspec.json.decode(state), msgspec.json.decode(change)
    devices = {device["name"]: device for device in known["devices"]}
    devices |= {device["name"]: device for device in parts.pop("devices", [])}
    for name in parts.pop("forgotten", []):
        del devices[name]
    merged = {**known, **parts, "devices": [devices[name] for name in sorted(devices)]}
    return msgspec.convert(merged, RunState)


states = st.builds(
    _state,
    taken_s=st.floats(0, 1e9),
    step=st.integers(0, 2),
    samples=st.dictionaries(st.sampled_from(["a", "b", "<img src=x>"]), st.integers(0, 2)),
)


@given(states, states)
def test_a_change_applied_to_the_old_state_gives_the_new_one(old: RunState, new: RunState) -> None:
    change = changed(old, new)
    if change is None:
        assert msgspec.structs.replace(old, taken_s=new.taken_s) == new
    else:
        assert _as_a_page_does(full(old), change) == new


def test_a_thousand_devices_are_not_sent_again_when_one_of_them_changes() -> None:
    many = {f"pi-{number}": 1 for number in range(1000)}
    change = changed(_state(samples=many), _state(samples={**many, "pi-7": 2}))
    assert change is not None
    assert len(change) < 1000
    assert b"pi-8" not in change


class Reader:
    """States one after the other, and in which threads they were asked for."""

    def __init__(self, *states: RunState | StoreError) -> None:
        self.states = list(states)
        self.threads: set[int] = set()
        self.reads = 0

    def read(self) -> RunState:
        self.threads.add(threading.get_ident())
        state = self.states[min(self.reads, len(self.states) - 1)]
        self.reads += 1
        if isinstance(state, StoreError):
            raise state
        return state


def _watch(reader: Reader, clock: Callable[[], float]) -> Watch:
    return Watch(reader.read, clock=clock)


def test_however_many_look_the_run_is_read_once_a_second_and_in_one_thread() -> None:
    reader = Reader(_state())
    now = [0.0]

    async def look() -> None:
        watch = _watch(reader, lambda: now[0])
        await asyncio.gather(*(watch.look() for _ in range(20)))
        assert reader.reads == 1
        now[0] = 0.99
        await watch.look()
        assert reader.reads == 1
        now[0] = 1.0
        await asyncio.gather(*(watch.look() for _ in range(20)))
        assert reader.reads == 2
        watch.close(lambda: reader.threads.add(threading.get_ident()))

    asyncio.run(look())
    assert len(reader.threads) == 1
    assert reader.threads != {threading.get_ident()}


def test_only_what_differs_makes_a_new_version_and_the_time_alone_does_not() -> None:
    cure = "x"
    reader = Reader(
        _state(), _state(taken_s=2.0), _state(step=1), StoreError("a", cure=cure), StoreError("a", cure=cure), _state()
    )
    ticks = iter(range(0, 1000, 2))

    async def look() -> list[tuple[int, bool, bool]]:
        watch = _watch(reader, lambda: float(next(ticks)))
        seen = [await watch.look() for _ in range(6)]
        watch.close(lambda: None)
        return [(one.version, one.state is not None, one.change is not None) for one in seen]

    assert asyncio.run(look()) == [
        (1, True, False),
        (1, True, False),
        (2, True, True),
        (3, False, False),
        (3, False, False),
        (4, True, False),
    ]


def test_an_error_that_is_not_ours_is_not_hidden() -> None:
    def broken() -> RunState:
        raise ZeroDivisionError

    async def look() -> None:
        watch = Watch(broken, clock=lambda: 0.0)
        with pytest.raises(ZeroDivisionError):
            await watch.look()
        watch.close(lambda: None)

    asyncio.run(look())
