"""Simulated devices: they keep to the protocol as a real one does, without sockets or clocks."""

from __future__ import annotations

import pytest

from sf_bench.ingest.device import Demand, Device, Message, largest_batch, shares
from sf_bench.ingest.observe import check_store
from sf_bench.ingest.results import Waits, shares_of, waits_of
from sf_bench.ingest.samples import SampleShape, Supply
from sf_contract.activations import unpack
from sf_contract.codec import WireCodec
from sf_contract.errors import DataError, StoreError
from sf_contract.messages import (
    Ack,
    ActivationBatch,
    AlreadyStored,
    Hello,
    Rejected,
    RejectionCode,
    Stored,
    Verdict,
    Welcome,
)

SHAPE = SampleShape(hidden=128, tokens=3)
BUNDLE_ID = "b" * 64
PLENTY = 1 << 30


def device_with(demand: Demand) -> Device:
    supply = Supply(SHAPE, bundle_id=BUNDLE_ID, most=largest_batch(SHAPE.nbytes))
    return Device(4, name="device-4", supply=supply, demand=demand, now_s=0.0)


def welcomed(demand: Demand, *, credit_bytes: int = PLENTY) -> Device:
    device = device_with(demand)
    (greeting,) = device.tick(0.0)
    assert isinstance(greeting[0], Hello)
    device.receive(Welcome(software="test", credit_bytes=credit_bytes), 0.0)
    device.begin(0.0)
    return device


def everything_sent(device: Device, now_s: float) -> list[ActivationBatch]:
    sent = []
    while (batch := device.batch(now_s)) is not None:
        sent.append(batch[0])
    return sent


def ordinals_of(batches: list[ActivationBatch]) -> list[int]:
    return [sample.ordinal for batch in batches for sample in batch.samples]


def ack(*verdicts: Verdict, credit_bytes: int = PLENTY) -> Ack:
    return Ack(verdicts=verdicts, credit_bytes=credit_bytes)


def stored(ordinals: list[int], *, credit_bytes: int = PLENTY) -> Ack:
    return ack(*(Stored(ordinal=ordinal) for ordinal in ordinals), credit_bytes=credit_bytes)


def test_nothing_is_sent_before_the_server_has_welcomed_the_device() -> None:
    device = device_with(Demand(in_flight_bytes=PLENTY))
    device.tick(0.0)
    assert device.batch(1.0) is None


def test_no_more_is_in_flight_than_the_server_has_granted() -> None:
    device = welcomed(Demand(in_flight_bytes=PLENTY), credit_bytes=50 * SHAPE.nbytes)
    sent = everything_sent(device, 1.0)
    assert ordinals_of(sent) == list(range(50))
    assert device.in_flight_bytes == 50 * SHAPE.nbytes
    device.receive(stored(list(range(16)), credit_bytes=40 * SHAPE.nbytes), 2.0)
    assert ordinals_of(everything_sent(device, 2.0)) == list(range(50, 56))


def test_no_more_is_in_flight_than_the_device_wants() -> None:
    device = welcomed(Demand(in_flight_bytes=40 * SHAPE.nbytes))
    assert [len(batch.samples) for batch in everything_sent(device, 1.0)] == [16, 16]


def test_a_device_that_sends_at_a_rate_has_only_what_was_made() -> None:
    device = welcomed(Demand(in_flight_bytes=PLENTY, samples_per_s=2.0, phase_s=1.0))
    assert everything_sent(device, 1.4) == []
    assert device.next_sample_s(1.4) == pytest.approx(1.5)
    assert ordinals_of(everything_sent(device, 1.5)) == [0]
    assert device.next_sample_s(1.5) == pytest.approx(2.0)
    assert ordinals_of(everything_sent(device, 3.1)) == [1, 2, 3]


def test_a_device_that_sends_at_a_rate_has_no_more_in_flight_than_it_wants() -> None:
    device = welcomed(Demand(in_flight_bytes=3 * SHAPE.nbytes, samples_per_s=2.0))
    assert ordinals_of(everything_sent(device, 10.0)) == [0, 1, 2]


def test_the_wait_of_a_made_sample_begins_when_it_is_made_and_not_when_it_may_be_sent() -> None:
    device = welcomed(Demand(in_flight_bytes=PLENTY, samples_per_s=2.0))
    everything_sent(device, 4.0)
    (settled,) = device.receive(stored(list(range(8))), 5.0)
    assert settled.waited_s == pytest.approx(4.5)
    assert (settled.samples, settled.nbytes) == (8, 8 * SHAPE.nbytes)


def test_the_wait_of_a_device_that_is_always_behind_begins_when_a_batch_is_sent() -> None:
    device = welcomed(Demand(in_flight_bytes=16 * SHAPE.nbytes))
    everything_sent(device, 4.0)
    (settled,) = device.receive(stored(list(range(16))), 4.25)
    assert settled.waited_s == pytest.approx(0.25)
    assert settled.at_s == 4.25


def test_a_repeat_counts_as_one_and_not_as_delivered() -> None:
    device = welcomed(Demand(in_flight_bytes=16 * SHAPE.nbytes))
    everything_sent(device, 1.0)
    (settled,) = device.receive(ack(*(AlreadyStored(ordinal=ordinal) for ordinal in range(16))), 2.0)
    assert (settled.samples, settled.nbytes, device.repeats) == (0, 0, 16)


def test_a_rejected_sample_ends_the_measurement() -> None:
    device = welcomed(Demand(in_flight_bytes=16 * SHAPE.nbytes))
    everything_sent(device, 1.0)
    with pytest.raises(DataError, match="too big"):
        device.receive(ack(Rejected(ordinal=0, code=RejectionCode.SHAPE, detail="too big")), 2.0)


def test_after_silence_a_device_asks_whether_the_server_is_there() -> None:
    device = welcomed(Demand(in_flight_bytes=PLENTY))
    (message,) = device.tick(device.due_s())
    assert type(message[0]).__name__ == "Ping"


def test_a_batch_is_what_a_server_unpacks() -> None:
    device = welcomed(Demand(in_flight_bytes=PLENTY))
    message: Message | None = device.batch(1.0)
    assert message is not None
    batch, buffers = message
    assert isinstance(batch, ActivationBatch)
    samples = unpack(batch, buffers, codec=WireCodec.INT8, hidden=SHAPE.hidden, with_targets=False)
    assert [sample.nbytes for sample in samples] == [SHAPE.nbytes] * 16
    assert all(sample.rows.is_finite() for sample in samples)


def test_a_batch_is_as_large_as_that_of_a_real_device() -> None:
    assert largest_batch(SampleShape(hidden=576, tokens=25).nbytes) == 16
    assert largest_batch(SampleShape(hidden=2048, tokens=128).nbytes) == 1


def test_shares_are_of_the_devices_asked_for_those_without_any_included() -> None:
    device = welcomed(Demand(in_flight_bytes=16 * SHAPE.nbytes))
    everything_sent(device, 1.0)
    settled = device.receive(stored(list(range(16))), 2.0)
    assert shares(settled, [3, 4]) == [0, 16 * SHAPE.nbytes]
    found = shares_of(settled, [3, 4])
    assert (found.jain, found.smallest, found.largest) == (pytest.approx(0.5), 0.0, 2.0)
    assert waits_of(settled) == Waits(p50_ms=1000, p95_ms=1000, p99_ms=1000)


@pytest.mark.parametrize(("stored_samples", "is_whole"), [(9, False), (9, True), (11, True)])
def test_a_store_that_does_not_hold_what_was_confirmed_ends_the_measurement(
    stored_samples: int, is_whole: bool
) -> None:
    with pytest.raises(StoreError, match=f"confirmed 10 samples and its store holds {stored_samples}"):
        check_store(stored_samples, 10, is_whole=is_whole)


def test_a_store_may_hold_more_while_verdicts_are_under_way() -> None:
    check_store(11, 10, is_whole=False)
    check_store(10, 10, is_whole=True)
