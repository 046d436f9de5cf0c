"""The file of lifted samples: exact, replaceable, and forgetful when asked."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from sf_contract.codec import WireCodec, decode_rows
from sf_server.store.stored import Origin
from sf_server.training.lift import raw_rows
from sf_server.training.lifted import LiftedFile, LiftedIdentity, LiftedSample, RowsDtype, forget_lifted

HIDDEN = 24
IDENTITY = LiftedIdentity(weights_sha256="1" * 64, config_sha256="2" * 64, layer=3, hidden=HIDDEN, dtype="float32")


def _rows(seq: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(2 + seq % 3, HIDDEN, generator=torch.Generator().manual_seed(seq)) * 50).to(dtype)


def _sample(seq: int, dtype: torch.dtype = torch.float32) -> LiftedSample:
    origin = Origin(bundle_id="b" * 64, outbox="0" * 32, ordinal=seq)
    return LiftedSample(
        seq=seq, origin=origin, device="phone", label=seq % 2, targets=None, rows=raw_rows(_rows(seq, dtype))
    )


def _open(path: Path, identity: LiftedIdentity = IDENTITY, said: list[str] | None = None) -> LiftedFile:
    return LiftedFile.open(path, identity, say=(said if said is not None else []).append)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_come_back_with_every_bit_they_had(tmp_path: Path, dtype: RowsDtype) -> None:
    kept = getattr(torch, dtype)
    with _open(tmp_path / "lifted.sqlite", msgspec.structs.replace(IDENTITY, dtype=dtype)) as lifted:
        lifted.add([_sample(seq, kept) for seq in range(1, 600)])
        found = lifted.load(list(range(1, 600)))
    for seq in range(1, 600):
        assert found[seq].rows.codec is WireCodec.FP32
        again = torch.from_numpy(decode_rows(found[seq].rows).copy()).to(kept)
        assert torch.equal(again, _rows(seq, kept))
        assert (found[seq].device, found[seq].label, found[seq].targets) == ("phone", seq % 2, None)


def test_targets_come_back_and_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    sample = _sample(1)
    targets = np.array([5, -100], dtype=np.int32)
    with _open(tmp_path / "lifted.sqlite") as lifted:
        lifted.add([LiftedSample(1, sample.origin, "phone", None, targets, sample.rows[:2])])
        found = lifted.load([1, 2])
    assert list(found) == [1]
    np.testing.assert_array_equal(found[1].targets, targets)


def test_what_is_there_already_stays_as_it_is(tmp_path: Path) -> None:
    with _open(tmp_path / "lifted.sqlite") as lifted:
        lifted.add([_sample(1)])
        other = LiftedSample(1, _sample(1).origin, "phone", 1, None, raw_rows(_rows(1) + 1))
        lifted.add([other, _sample(2)])
        found = lifted.load([1, 2])
    np.testing.assert_array_equal(decode_rows(found[1].rows), _rows(1).numpy())
    assert list(found) == [1, 2]


@pytest.mark.parametrize(
    "change", [{"layer": 4}, {"weights_sha256": "9" * 64}, {"config_sha256": "9" * 64}, {"dtype": "bfloat16"}]
)
def test_a_file_of_another_base_layer_or_dtype_is_thrown_away_and_that_is_said(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path, said = tmp_path / "lifted.sqlite", []
    with _open(path) as lifted:
        lifted.add([_sample(1)])
    with _open(path, msgspec.structs.replace(IDENTITY, **change), said) as lifted:
        assert lifted.load([1]) == {}
    assert said == ["lifted.sqlite belongs to another base model, layer or dtype: the samples are lifted again"]


def test_the_same_file_is_kept(tmp_path: Path) -> None:
    path, said = tmp_path / "lifted.sqlite", []
    with _open(path) as lifted:
        lifted.add([_sample(1), _sample(7)])
    with _open(path, said=said) as lifted:
        assert lifted.present(first_seq=1, last_seq=6) == {1: _sample(1).origin}
    assert said == []


@pytest.mark.parametrize("content", [b"", b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_made_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lifted.sqlite"
    path.write_bytes(content)
    with _open(path) as lifted:
        lifted.add([_sample(1)])
        assert list(lifted.load([1])) == [1]


def test_nothing_of_a_forgotten_sample_is_left_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lifted.sqlite"
    with _open(path) as lifted:
        lifted.add([_sample(seq) for seq in range(1, 60)])
        assert lifted.forget([5, 6, 1000]) == 2
        assert list(lifted.load([4, 5, 6, 7])) == [4, 7]
    before, gone = path.stat().st_size, list(range(10, 60))
    assert forget_lifted(path, gone) == len(gone)
    everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for seq in (5, 6, *gone):
        assert _sample(seq).rows[0].tobytes() not in everything
    assert _sample(7).rows[0].tobytes() in everything
    assert path.stat().st_size < before
    assert forget_lifted(tmp_path / "missing.sqlite", [1]) == 0


def test_another_thread_reads_what_this_one_writes(tmp_path: Path) -> None:
    found: list[int] = []
    with _open(tmp_path / "lifted.sqlite") as lifted:
        lifted.add([_sample(3)])
        thread = threading.Thread(target=lambda: found.extend(lifted.load([3])))
        thread.start()
        thread.join()
    assert found == [3]
