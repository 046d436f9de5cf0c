"""The outbox: ordinals, durability, bounds, ownership, errors."""

from __future__ import annotations

import dataclasses
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sf_contract.activations import NO_TARGET, EncodedSample
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.errors import AlreadyRunning, DiskFull, MismatchError, StoreError
from sf_contract.messages import AlreadyStored, Rejected, RejectionCode, Role, Stored
from sf_edge.outbox.place import DATABASE_FILE
from sf_edge.outbox.queue import Outbox, read_outbox_status
from sf_edge.outbox.records import Owner
from sf_edge.sources import SourcePosition
from support.wire_rows import int4_for

OWNER = Owner(bundle_id="a" * 64, device="pi", codec=WireCodec.INT8, hidden=70)
MAX_BYTES = 10_000


def open_outbox(folder: Path, *, owner: Owner = OWNER, max_bytes: int = MAX_BYTES) -> Outbox:
    return Outbox(folder, owner=owner, max_bytes=max_bytes)


def make_sample(ordinal: int, *, tokens: int = 3, codec: WireCodec = WireCodec.INT8) -> EncodedSample:
    values = np.random.default_rng(ordinal).normal(size=(tokens, OWNER.hidden)).astype(np.float32)
    rows = encode_rows(values, codec, int4_for(codec, OWNER.hidden))
    return EncodedSample(ordinal=ordinal, role=Role.VALIDATION, rows=rows, label=ordinal % 2)


def add(outbox: Outbox, count: int = 1) -> None:
    for _ in range(count):
        ordinal = outbox.next_ordinal
        outbox.append(make_sample(ordinal), place(ordinal))


def place(ordinal: int, *, source: str = "rows") -> SourcePosition:
    return SourcePosition(line=ordinal + 1, digest=f"d{ordinal}", nbytes=10 * (ordinal + 1), source=source)


def offered(outbox: Outbox) -> list[int]:
    return [offer.ordinal for offer in outbox.offers(after=-1, limit=100)]


@pytest.mark.parametrize("codec", list(WireCodec))
def test_a_sample_comes_back_as_it_was(tmp_path: Path, codec: WireCodec) -> None:
    with open_outbox(tmp_path, owner=dataclasses.replace(OWNER, codec=codec)) as outbox:
        sample = make_sample(0, codec=codec)
        outbox.append(sample, SourcePosition(1, "d"))
        outbox.commit()
        (loaded,) = outbox.load([0])
    assert (loaded.ordinal, loaded.role, loaded.label, loaded.targets) == (0, Role.VALIDATION, 0, None)
    assert np.array_equal(loaded.rows.rows, sample.rows.rows)
    assert np.array_equal(loaded.rows.scales, sample.rows.scales)
    assert loaded.nbytes == sample.nbytes


def test_completion_targets_and_rows_without_scales_come_back_too(tmp_path: Path) -> None:
    owner = dataclasses.replace(OWNER, codec=WireCodec.FP16)
    sample = dataclasses.replace(
        make_sample(0, codec=WireCodec.FP16), label=None, targets=np.array([NO_TARGET, 5, 6], dtype=np.int32)
    )
    with open_outbox(tmp_path, owner=owner) as outbox:
        outbox.append(sample, SourcePosition(1, "d"))
        (loaded,) = outbox.load([0])
    assert loaded.label is None
    assert loaded.targets is not None
    assert loaded.targets.tolist() == [NO_TARGET, 5, 6]
    assert loaded.rows.scales.shape == (3, 0)
    assert np.array_equal(loaded.rows.rows, sample.rows.rows)


def test_only_committed_samples_are_offered(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        add(outbox, 2)
        assert offered(outbox) == []
        outbox.commit()
        add(outbox)
        assert offered(outbox) == [0, 1]


def test_everything_survives_reopening(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        add(outbox, 3)
        outbox.counters.samples = 3
        outbox.commit()
        outbox_id = outbox.outbox_id
    with open_outbox(tmp_path) as outbox:
        assert outbox.outbox_id == outbox_id
        assert outbox.positions == {"rows": SourcePosition(3, "d2", 30, "rows")}
        assert outbox.counters.samples == 3
        assert (outbox.waiting_samples, outbox.next_ordinal) == (3, 3)
        assert offered(outbox) == [0, 1, 2]


def test_what_was_not_committed_is_gone_with_its_position_and_ordinal(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        add(outbox)
        outbox.commit()
        add(outbox, 4)
    with open_outbox(tmp_path) as outbox:
        assert (outbox.positions["rows"].line, outbox.next_ordinal, outbox.waiting_samples) == (1, 1, 1)


def test_every_source_keeps_its_own_position(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        outbox.append(make_sample(0), place(4, source="a.jsonl"))
        outbox.append(make_sample(1), place(7, source="b.jsonl"))
        outbox.skip(place(5, source="a.jsonl"))
        outbox.commit()
        outbox.skip(place(9, source="b.jsonl"))
    with open_outbox(tmp_path) as outbox:
        assert outbox.positions == {
            "a.jsonl": place(5, source="a.jsonl"),
            "b.jsonl": place(7, source="b.jsonl"),
        }
        assert "c.jsonl" not in outbox.positions


def test_sources_that_get_each_others_names_keep_their_positions(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        outbox.append(make_sample(0), place(4, source="a"))
        outbox.append(make_sample(1), place(7, source="a.1"))
        outbox.commit()
        outbox.move_sources({"a": "a.1", "a.1": "a.2", "unknown": "b"})
        outbox.append(make_sample(2), place(0, source="a"))
        outbox.set_row_aside(place(8, source="a.2"), code="c", detail="d")
        outbox.commit()
    with open_outbox(tmp_path) as outbox:
        assert {name: position.line for name, position in outbox.positions.items()} == {"a": 1, "a.1": 5, "a.2": 9}
        outbox.mark_sent([0])
        outbox.settle([Rejected(0, RejectionCode.LABEL, "no")])
        assert [aside.source for aside in outbox.status().set_aside] == ["a.2", "a.1"]


def test_two_outboxes_have_different_random_ids(tmp_path: Path) -> None:
    with open_outbox(tmp_path / "a") as first, open_outbox(tmp_path / "b") as second:
        assert first.outbox_id != second.outbox_id
        assert len(first.outbox_id) == 32


def test_ordinals_are_never_reused_even_when_every_sample_was_forgotten(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        add(outbox, 3)
        outbox.mark_sent([0, 1, 2])
        outbox.settle([Stored(0), Stored(1), Stored(2)])
        outbox.commit()
    with open_outbox(tmp_path) as outbox:
        assert (outbox.waiting_samples, outbox.waiting_bytes, outbox.next_ordinal) == (0, 0, 3)


def test_verdicts_forget_or_set_aside_and_unknown_ordinals_are_ignored(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        add(outbox, 4)
        outbox.commit()
        outbox.mark_sent([0, 1, 2])
        rejected = Rejected(2, RejectionCode.LABEL, "no such label")
        assert outbox.settle([Stored(0), AlreadyStored(1), rejected, Stored(99), Stored(0), rejected]) == 3
        outbox.commit()
        assert offered(outbox) == [3]
        assert (outbox.counters.acknowledged, outbox.counters.rejected) == (2, 1)
        (aside,) = outbox.status().set_aside
        assert (aside.ordinal, aside.source, aside.line, aside.code) == (2, "rows", 3, "label")


def test_a_first_sending_is_told_from_a_repeat_across_restarts(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        add(outbox, 3)
        assert outbox.mark_sent([0, 1]) == 2
        outbox.commit()
    with open_outbox(tmp_path) as outbox:
        assert outbox.mark_sent([0, 1, 2]) == 1


def test_it_has_room_up_to_its_limit_and_always_for_one_sample(tmp_path: Path) -> None:
    nbytes = make_sample(0).nbytes
    with open_outbox(tmp_path, max_bytes=2 * nbytes) as outbox:
        assert outbox.has_room(10 * nbytes)
        add(outbox)
        assert outbox.has_room(nbytes)
        add(outbox)
        assert not outbox.has_room(1)
        outbox.mark_sent([0])
        outbox.settle([Stored(0)])
        assert outbox.has_room(nbytes)


def test_only_its_owner_can_read_the_folder(tmp_path: Path) -> None:
    with open_outbox(tmp_path / "outbox"):
        assert (tmp_path / "outbox").stat().st_mode & 0o077 == 0


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with open_outbox(tmp_path), pytest.raises(AlreadyRunning):
        open_outbox(tmp_path)
    open_outbox(tmp_path).close()


@pytest.mark.parametrize("change", [{"bundle_id": "b" * 64}, {"device": "other"}])
def test_it_belongs_to_one_bundle_and_device(tmp_path: Path, change: dict[str, str]) -> None:
    open_outbox(tmp_path).close()
    with pytest.raises(MismatchError):
        open_outbox(tmp_path, owner=dataclasses.replace(OWNER, **change))
    open_outbox(tmp_path).close()


def test_status_can_be_read_while_it_is_open_and_sees_committed_samples_only(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as outbox:
        add(outbox)
        outbox.commit()
        add(outbox)
        assert read_outbox_status(tmp_path).waiting_samples == 1


def test_no_outbox_a_damaged_one_and_a_future_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no outbox"):
        read_outbox_status(tmp_path)
    with pytest.raises(StoreError, match="no outbox"):
        read_outbox_status(tmp_path / "nothing")
    (tmp_path / DATABASE_FILE).write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_outbox(tmp_path)
    (tmp_path / "future").mkdir()
    connection = sqlite3.connect(tmp_path / "future" / DATABASE_FILE)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StoreError, match="format 9"):
        open_outbox(tmp_path / "future")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        open_outbox(tmp_path / "file" / "outbox")


def test_a_full_disk_is_named_and_nothing_committed_is_lost(tmp_path: Path) -> None:
    with open_outbox(tmp_path, max_bytes=1 << 30) as outbox:
        add(outbox, 2)
        outbox.commit()
        outbox._file._connection.execute(
            "PRAGMA max_page_count = 1"
        )  # as small as the file is now: no page can be added
        with pytest.raises(DiskFull, match="committed so far is safe"):
            add(outbox, 1000)
    with open_outbox(tmp_path) as outbox:
        assert offered(outbox) == [0, 1]
        assert outbox.next_ordinal == 2


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from sf_contract.activations import EncodedSample
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.messages import Role, Stored
from sf_edge.outbox.queue import Outbox
from sf_edge.outbox.records import Owner
from sf_edge.sources import SourcePosition

owner = Owner(bundle_id="a" * 64, device="pi", codec=WireCodec.INT8, hidden=70)
rows = encode_rows(np.ones((3, 70), dtype=np.float32), WireCodec.INT8)
with Outbox(Path(sys.argv[1]), owner=owner, max_bytes=1 << 30) as outbox:
    while True:
        for _ in range(3):
            ordinal = outbox.next_ordinal
            sample = EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows)
            outbox.append(sample, SourcePosition(ordinal + 1, ""))
            outbox.counters.samples += 1
        outbox.mark_sent([ordinal])
        outbox.settle([Stored(ordinal - 5)])
        outbox.commit()
        print(outbox.next_ordinal, flush=True)
"""


def test_killing_the_process_between_and_in_commits_leaves_no_gap_and_no_repeat(
    tmp_path: Path, seeded: np.random.Generator
) -> None:
    reported = 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(int(seeded.integers(1, 12))):
            reported = int(writer.stdout.readline())
        writer.kill()
        rest, _ = writer.communicate()
        reported = max([reported, *map(int, rest.split("\n")[:-1])])
        status = read_outbox_status(tmp_path)
        with open_outbox(tmp_path, max_bytes=1 << 30) as outbox:
            assert outbox.next_ordinal >= reported, "a committed sample was lost"
            assert outbox.next_ordinal == outbox.positions[""].line == outbox.counters.samples
            assert outbox.next_ordinal % 3 == 0, "half a transaction is visible"
            acknowledged = outbox.counters.acknowledged
            assert status.waiting_samples + acknowledged == outbox.next_ordinal
