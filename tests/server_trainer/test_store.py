from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sf_contract.activations import NO_TARGET, EncodedSample
from sf_contract.codec import WireCodec, decode_rows, encode_rows
from sf_contract.errors import DiskFull, StoreError
from sf_contract.limits import MIB
from sf_contract.messages import AlreadyStored, Role, Stored
from sf_server.store.store import Store
from sf_server.store.stored import held_back

BUNDLE_ID = "b" * 64
PHONE = {"device": "phone", "outbox": "1" * 32, "bundle_id": BUNDLE_ID}
TABLET = {"device": "tablet", "outbox": "2" * 32, "bundle_id": BUNDLE_ID}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, max_bytes=64 * MIB) as opened:
        _greet(opened, PHONE, now_s=1.0)
        _greet(opened, TABLET, now_s=2.0)
        yield opened


def _greet(store: Store, sender: dict[str, str], *, now_s: float, waiting_samples: int = 0) -> None:
    store.note_hello(**sender, self_test_error=0.01, waiting_samples=waiting_samples, now_s=now_s)


@pytest.mark.parametrize("codec", WireCodec)
def test_a_sample_comes_back_as_it_was_added(store: Store, path: Path, make_sample: Any, codec: WireCodec) -> None:
    sent = make_sample(7, codec=codec, label=None, targets=[NO_TARGET, 4, 99])
    store.add(**PHONE, samples=[sent])
    with Store.open_read_only(path, int4=None if sent.rows.int4 is None else {BUNDLE_ID: sent.rows.int4}) as reader:
        (found,) = reader.load([1])
    assert (found.seq, found.device, found.label, found.rows.codec) == (1, "phone", None, codec)
    np.testing.assert_array_equal(decode_rows(found.rows), decode_rows(sent.rows))
    np.testing.assert_array_equal(found.rows.scales, sent.rows.scales)
    np.testing.assert_array_equal(found.targets, sent.targets)
    assert found.rows.rows.dtype == sent.rows.rows.dtype


def test_a_sample_without_targets_keeps_its_label_and_has_none(store: Store, make_sample: Any) -> None:
    store.add(**PHONE, samples=[make_sample(0, label=1)])
    (found,) = store.load([1])
    assert found.label == 1
    assert found.targets is None


def test_a_repeat_is_recognised_and_not_stored_again(store: Store, make_sample: Any) -> None:
    assert store.add(**PHONE, samples=[make_sample(0), make_sample(1)]) == [Stored(ordinal=0), Stored(ordinal=1)]
    assert store.add(**PHONE, samples=[make_sample(1), make_sample(2)]) == [AlreadyStored(ordinal=1), Stored(ordinal=2)]
    assert store.counts().train_samples == 3
    phone, _ = store.device_summaries()
    assert (phone.samples, phone.repeats) == (3, 1)


def test_a_large_group_is_not_written_before_it_is_committed(store: Store, path: Path, make_sample: Any) -> None:
    """What is written early, because it does not fit in SQLite's cache, is read and written again at the commit."""
    log = path.with_name(path.name + "-wal")
    first = make_sample(0, tokens=15_000)
    samples = [replace(first, ordinal=ordinal) for ordinal in range(80)]
    group_bytes = sum(sample.nbytes for sample in samples)
    assert group_bytes > 8 * MIB
    with store.commit():
        before = log.stat().st_size
        store.add(**PHONE, samples=samples)
        assert log.stat().st_size == before
    assert log.stat().st_size > group_bytes


def test_two_outboxes_may_use_the_same_ordinals(store: Store, make_sample: Any) -> None:
    store.add(**PHONE, samples=[make_sample(0)])
    assert store.add(**TABLET, samples=[make_sample(0)]) == [Stored(ordinal=0)]
    assert [info.device for info in store.sample_infos(role=Role.TRAIN)] == ["phone", "tablet"]


def test_infos_are_in_order_of_arrival_and_apart_by_role(store: Store, make_sample: Any) -> None:
    roles = [Role.TRAIN, Role.VALIDATION, Role.TRAIN, Role.TRAIN]
    store.add(**PHONE, samples=[make_sample(n, role=role, tokens=n + 1) for n, role in enumerate(roles)])
    assert [(info.seq, info.tokens) for info in store.sample_infos(role=Role.TRAIN)] == [(1, 1), (3, 3), (4, 4)]
    assert [info.seq for info in store.sample_infos(role=Role.VALIDATION)] == [2]
    assert [info.seq for info in store.sample_infos(role=Role.TRAIN, after_seq=1, limit=1)] == [3]


def test_samples_are_loaded_in_the_order_asked_for_however_many(store: Store, make_sample: Any) -> None:
    store.add(**PHONE, samples=[make_sample(n, tokens=1) for n in range(1200)])
    wanted = [1200, 1, 600, 600, *range(2, 1100)]
    assert [sample.seq for sample in store.load(wanted)] == wanted


def test_a_sample_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(StoreError, match="holds no sample 42"):
        store.load([42])


def test_what_belongs_to_one_commit_is_kept_or_dropped_together(store: Store, make_sample: Any) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), store.commit():
        store.add(**PHONE, samples=[make_sample(0)])
        store.add(**TABLET, samples=[make_sample(0)])
        raise RuntimeError("in the middle")
    assert store.counts().train_samples == 0


def test_numbers_of_dropped_samples_do_not_disturb_the_order(store: Store, make_sample: Any) -> None:
    store.add(**PHONE, samples=[make_sample(0)])
    store.add(**PHONE, samples=[make_sample(0)])
    store.add(**PHONE, samples=[make_sample(1)])
    seqs = [info.seq for info in store.sample_infos(role=Role.TRAIN)]
    assert seqs == sorted(set(seqs))


def test_a_number_is_never_used_again_even_when_its_sample_was_deleted(
    store: Store, path: Path, make_sample: Any
) -> None:
    store.add(**PHONE, samples=[make_sample(0), make_sample(1)])
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM samples WHERE seq = 2")
    connection.close()
    store.add(**PHONE, samples=[make_sample(2)])
    assert [info.seq for info in store.sample_infos(role=Role.TRAIN)] == [1, 3]


def test_a_full_store_says_so_and_keeps_what_it_confirmed(path: Path, make_sample: Any) -> None:
    with Store.open(path, max_bytes=1 * MIB) as store:
        _greet(store, PHONE, now_s=1.0)
        confirmed = 0
        with pytest.raises(DiskFull, match="no room left"):
            for start in range(0, 100_000, 100):
                samples = [make_sample(start + n, tokens=16, codec=WireCodec.FP32) for n in range(100)]
                confirmed += len(store.add(**PHONE, samples=samples))
        assert confirmed > 0
        assert store.counts().train_samples == confirmed
        assert path.stat().st_size <= 1 * MIB


def test_a_larger_quota_makes_room_again(path: Path, make_sample: Any) -> None:
    samples = [make_sample(n, tokens=16, codec=WireCodec.FP32) for n in range(3000)]
    with Store.open(path, max_bytes=1 * MIB) as store, pytest.raises(DiskFull):
        store.add(**PHONE, samples=samples)
    with Store.open(path, max_bytes=8 * MIB) as store:
        assert len(store.add(**PHONE, samples=samples)) == len(samples)


def test_a_reader_sees_commits_of_a_writer_and_cannot_write(store: Store, path: Path, make_sample: Any) -> None:
    with Store.open_read_only(path) as reader:
        assert reader.counts().train_samples == 0
        store.add(**PHONE, samples=[make_sample(0)])
        assert reader.counts().train_samples == 1
        with pytest.raises(StoreError, match="readonly"):
            reader.add(**PHONE, samples=[make_sample(1)])


def test_a_reader_does_not_see_or_disturb_an_unfinished_commit(store: Store, path: Path, make_sample: Any) -> None:
    with Store.open_read_only(path) as reader:
        with store.commit():
            store.add(**PHONE, samples=[make_sample(0)])
            assert reader.counts().train_samples == 0
        assert reader.counts().train_samples == 1


def test_a_store_can_be_read_after_its_writer_left(path: Path, make_sample: Any) -> None:
    with Store.open(path, max_bytes=8 * MIB) as store:
        _greet(store, PHONE, now_s=1.0)
        store.add(**PHONE, samples=[make_sample(0)])
    with Store.open_read_only(path) as reader:
        assert reader.counts().train_samples == 1


def test_counters_add_up_and_times_are_those_passed_in(store: Store, make_sample: Any) -> None:
    store.add(**PHONE, samples=[make_sample(0)])
    store.note_traffic(outbox=PHONE["outbox"], bytes_in=100, bytes_out=10, malformed=1, now_s=5.0)
    store.note_rejected(outbox=PHONE["outbox"], samples=2)
    store.note_traffic(outbox=PHONE["outbox"], bytes_in=50, bytes_out=5, malformed=0, now_s=6.0)
    store.note_finished(outbox=PHONE["outbox"], skipped_rows=3, now_s=7.0)
    phone, tablet = store.device_summaries()
    assert (phone.bytes_in, phone.bytes_out, phone.rejected, phone.malformed, phone.skipped_rows) == (150, 15, 2, 1, 3)
    assert (phone.first_seen_s, phone.last_seen_s, phone.finished) == (1.0, 7.0, True)
    assert (tablet.bytes_in, tablet.finished) == (0, False)


def test_what_a_device_said_last_about_being_held_back_is_kept_with_its_time(store: Store) -> None:
    quiet = {"outbox": PHONE["outbox"], "bytes_in": 1, "bytes_out": 1, "malformed": 0}
    store.note_traffic(**quiet, now_s=5.0, activity="paused: 81 °C hot, waits for 70 °C")
    store.note_traffic(**quiet, now_s=6.0)
    phone, tablet = store.device_summaries()
    assert (phone.activity, phone.activity_s) == ("paused: 81 °C hot, waits for 70 °C", 5.0)
    assert held_back([phone, tablet]) == [f"{PHONE['device']} (paused: 81 °C hot, waits for 70 °C)"]
    store.note_traffic(**quiet, now_s=7.0, activity="")
    phone, tablet = store.device_summaries()
    assert (phone.activity, phone.activity_s) == ("", 7.0)
    assert held_back([phone, tablet]) == []


def test_only_the_outbox_a_device_used_last_says_what_holds_it_back(store: Store) -> None:
    _greet(store, {**PHONE, "outbox": "9" * 32}, now_s=9.0)
    store.note_traffic(
        outbox=PHONE["outbox"], bytes_in=1, bytes_out=1, malformed=0, now_s=3.0, activity="paused: runs on battery"
    )
    assert held_back(store.device_summaries()) == []


def test_a_device_that_brings_new_samples_has_not_finished(store: Store, make_sample: Any) -> None:
    store.note_finished(outbox=PHONE["outbox"], skipped_rows=0, now_s=3.0)
    _greet(store, PHONE, now_s=4.0)
    assert store.counts().finished_devices == 1
    _greet(store, PHONE, now_s=5.0, waiting_samples=1)
    assert store.counts().finished_devices == 0
    store.note_finished(outbox=PHONE["outbox"], skipped_rows=0, now_s=6.0)
    store.add(**PHONE, samples=[make_sample(0)])
    assert store.counts().finished_devices == 0


def test_a_device_that_lost_its_outbox_counts_once_and_by_the_new_one(store: Store) -> None:
    renewed = {**PHONE, "outbox": "3" * 32}
    _greet(store, renewed, now_s=10.0)
    assert (store.counts().devices, store.counts().finished_devices) == (2, 0)
    store.note_finished(outbox=renewed["outbox"], skipped_rows=0, now_s=11.0)
    assert (store.counts().devices, store.counts().finished_devices) == (2, 1)


def test_an_outbox_has_an_owner_once_it_was_seen(store: Store) -> None:
    assert store.owner(PHONE["outbox"]) == "phone"
    assert store.owner("f" * 32) is None


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"not a database, but long enough to have a header of one" * 50)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(garbage, max_bytes=MIB)
    with pytest.raises(StoreError, match="no store at"):
        Store.open_read_only(tmp_path / "missing")
    with pytest.raises(StoreError, match="cannot be used"):
        Store.open(tmp_path / "no" / "folder", max_bytes=MIB)


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine(x)")
    connection.close()
    with pytest.raises(StoreError, match="is not a store"):
        Store.open(other, max_bytes=MIB)
    with pytest.raises(StoreError, match="is not a store"):
        Store.open_read_only(other)


def test_a_store_of_another_format_version_is_refused_by_name(store: Store, path: Path) -> None:
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="format version 99"):
        Store.open(path, max_bytes=MIB)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 5)), max_size=30))
def test_however_often_samples_are_sent_each_is_stored_once(deliveries: list[tuple[int, int]]) -> None:
    senders = [PHONE, TABLET]
    rows = encode_rows(np.ones((1, 4), dtype=np.float32), WireCodec.FP16)
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "s.sqlite", max_bytes=MIB) as store:
        seen: set[tuple[int, int]] = set()
        with store.commit():
            for sender, ordinal in deliveries:
                sample = EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows, label=0)
                (verdict,) = store.add(**senders[sender], samples=[sample])
                assert isinstance(verdict, AlreadyStored if (sender, ordinal) in seen else Stored)
                seen.add((sender, ordinal))
        infos = store.sample_infos(role=Role.TRAIN)
        assert len(infos) == len(seen) == store.counts().train_samples
        assert [info.seq for info in infos] == sorted({info.seq for info in infos})
