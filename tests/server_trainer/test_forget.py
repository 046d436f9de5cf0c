"""A device is forgotten: nothing of its samples is left in any file, and it does not come back by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sf_contract.activations import EncodedSample
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.errors import AlreadyRunning, StoreError, UsageError
from sf_contract.frames import encode
from sf_contract.limits import MIB
from sf_contract.messages import PROTOCOL_VERSION, Hello, Inquiry, Refusal, RefusalCode, Role, Welcome
from sf_server.ingest.ingest import Ingest
from sf_server.link.router import Arrival
from sf_server.main import main
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings
from sf_server.store.forget import forget_device
from sf_server.store.forget_command import main_forget
from sf_server.store.removal import Remover
from sf_server.store.retention import DAY_S, Retention
from sf_server.store.store import Store
from sf_server.training.lifted import LiftedFile, LiftedIdentity, LiftedSample

HIDDEN = 128
TOKENS = 40
BUNDLE_ID = "b" * 64
OUTBOXES = {"pi-3": "3" * 31 + "a", "phone": "7" * 31 + "b"}


def _sample(ordinal: int, *, seed: int, role: Role = Role.TRAIN) -> EncodedSample:
    rows = np.random.default_rng(seed).normal(size=(TOKENS, HIDDEN)).astype(np.float32)
    return EncodedSample(ordinal=ordinal, role=role, rows=encode_rows(rows, WireCodec.INT8), label=1, targets=None)


def _known_bytes(sample: EncodedSample) -> bytes:
    """A piece from the middle of its rows, short enough to lie within one page of the file almost always."""
    raw = np.ascontiguousarray(sample.rows.rows).tobytes()
    return raw[len(raw) // 2 :][:24]


def _greet(store: Store, device: str, now_s: float = 1.0) -> None:
    store.note_hello(
        device=device, outbox=OUTBOXES[device], bundle_id=BUNDLE_ID, self_test_error=0.0, waiting_samples=0, now_s=now_s
    )


def _add(store: Store, device: str, samples: list[EncodedSample], now_s: float | None = None) -> None:
    store.add(device=device, outbox=OUTBOXES[device], bundle_id=BUNDLE_ID, samples=samples, now_s=now_s)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create(TrainSettings(bundle="b", run=str(made.path), expect_samples=10), bundle_ids=[BUNDLE_ID])
    return made


@pytest.fixture
def samples(folder: RunFolder) -> dict[str, list[EncodedSample]]:
    """Samples of two devices in the store, mixed as they come."""
    made = {
        "pi-3": [_sample(n, seed=n, role=Role.VALIDATION if n % 10 == 9 else Role.TRAIN) for n in range(60)],
        "phone": [_sample(n, seed=1000 + n) for n in range(60)],
    }
    with Store.open(folder.store_path, max_bytes=64 * MIB) as store:
        for device in made:
            _greet(store, device)
        for start in range(0, 60, 7):
            for device, of_device in made.items():
                _add(store, device, of_device[start : start + 7])
    return made


def _raw(folder: RunFolder) -> bytes:
    """Every byte of every file of the run."""
    return b"".join(path.read_bytes() for path in sorted(folder.path.rglob("*")) if path.is_file())


def _found(folder: RunFolder, samples: list[EncodedSample]) -> int:
    raw = _raw(folder)
    return sum(_known_bytes(sample) in raw for sample in samples)


def _forget(folder: RunFolder, device: str, *, delete_adapters: bool = False) -> Any:
    with folder.lock():
        return forget_device(folder, device, delete_adapters=delete_adapters, now_s=5.0, say=lambda _: None)


def test_the_raw_files_hold_a_devices_rows_before_and_none_of_them_after(folder, samples) -> None:
    assert _found(folder, samples["pi-3"]) > 50
    assert OUTBOXES["pi-3"].encode() in _raw(folder)
    before = _found(folder, samples["phone"])
    forgotten = _forget(folder, "pi-3")
    assert _found(folder, samples["pi-3"]) == 0
    assert OUTBOXES["pi-3"].encode() not in _raw(folder)
    assert _found(folder, samples["phone"]) >= before - 3  # pages are cut elsewhere now
    assert (forgotten.train_samples, forgotten.validation_samples, forgotten.outboxes) == (54, 6, 1)
    assert forgotten.bytes_after < 0.6 * forgotten.bytes_before
    assert forgotten.proof.traces >= 60
    assert forgotten.proof.found_before > 0.8 * forgotten.proof.traces
    assert forgotten.proof.shared == 0
    with Store.open_read_only(folder.store_path) as store:
        assert [summary.device for summary in store.device_summaries()] == ["phone"]
        assert len(store.load([info.seq for info in store.sample_infos(role=Role.TRAIN)])) == 60


def test_deleting_alone_would_leave_the_rows_in_the_file(folder, samples) -> None:
    """What the search is for: SQLite's own DELETE only takes rows out of the index."""
    with Store.open(folder.store_path, max_bytes=64 * MIB) as store, store.commit():
        store._connection.execute("PRAGMA secure_delete = OFF")
        store._connection.execute("DELETE FROM samples WHERE device = 'pi-3'")
    assert _found(folder, samples["pi-3"]) > 30


def test_something_that_is_left_anywhere_in_the_folder_is_an_error_that_names_the_file(folder, samples) -> None:
    (folder.path / "copy.bin").write_bytes(b"x" * 3 + np.ascontiguousarray(samples["pi-3"][4].rows.rows).tobytes())
    with pytest.raises(StoreError, match=r"copy\.bin still holds"):
        _forget(folder, "pi-3")
    (folder.path / "copy.bin").unlink()
    (folder.path / "log.txt").write_text(f"outbox {OUTBOXES['phone']}")
    with pytest.raises(StoreError, match=r"log\.txt still holds 0 strings .* and 1 outbox ids"):
        _forget(folder, "phone")


def test_bytes_that_another_devices_sample_holds_too_are_told_apart(folder, samples) -> None:
    with Store.open(folder.store_path, max_bytes=64 * MIB) as store:
        _add(
            store,
            "phone",
            [EncodedSample(ordinal=99, role=Role.TRAIN, rows=samples["pi-3"][0].rows, label=0, targets=None)],
        )
    assert _forget(folder, "pi-3").proof.shared >= 1


def test_lifted_samples_of_the_device_go_too(folder, samples) -> None:
    del samples
    identity = LiftedIdentity(weights_sha256="0" * 64, config_sha256="1" * 64, layer=4, hidden=HIDDEN, dtype="float32")
    with Store.open_read_only(folder.store_path) as store:
        infos = store.sample_infos(role=Role.TRAIN)
        origins = {info.seq: origin for info, origin in zip(infos, _origins(store, infos), strict=True)}
    rows = {info.seq: np.random.default_rng(info.seq).bytes(TOKENS * HIDDEN * 4) for info in infos}
    with LiftedFile.open(folder.lifted_path, identity, say=lambda _: None) as lifted:
        lifted.add(
            [
                LiftedSample(
                    seq=info.seq, origin=origins[info.seq], device=info.device, label=1, targets=None,
                    rows=np.frombuffer(rows[info.seq], dtype=np.uint8).reshape(TOKENS, -1),
                )
                for info in infos
            ]
        )  # fmt: skip
    mine = [info.seq for info in infos if info.device == "pi-3"]
    assert rows[mine[0]][:24] in _raw(folder)
    assert _forget(folder, "pi-3").lifted_samples == len(mine) == 54
    raw = _raw(folder)
    assert not any(rows[seq][:24] in raw for seq in mine)
    with LiftedFile.open(folder.lifted_path, identity, say=pytest.fail) as lifted:
        assert len(lifted.present(first_seq=0, last_seq=1000)) == 60


def _origins(store: Store, infos: list[Any]) -> Iterator[Any]:
    from sf_server.store.stored import Origin

    for info in infos:
        yield Origin(bundle_id=BUNDLE_ID, outbox=OUTBOXES[info.device], ordinal=info.seq)


def _weights(folder: RunFolder) -> None:
    folder.adapter_path.mkdir()
    for step, epoch, upto in ((3, 1, 0), (20, 1, 40), (90, 2, 120)):
        path = folder.checkpoints_path / f"step-{step:010d}"
        path.mkdir(parents=True)
        state = {"step": step, "position": {"epoch": epoch, "after_seq": 0, "upto_seq": upto, "next_batch": 0}}
        (path / "state.json").write_text(json.dumps(state))


def test_what_was_trained_on_the_samples_is_listed_and_stays_until_told_otherwise(folder, samples) -> None:
    del samples
    _weights(folder)
    forgotten = _forget(folder, "pi-3")
    names = [Path(path).name for path in forgotten.influenced]
    assert names == ["adapter", "step-0000000020", "step-0000000090"]
    assert not forgotten.influenced_deleted
    assert folder.adapter_path.is_dir()

    again = _forget(folder, "pi-3", delete_adapters=True)
    assert [Path(path).name for path in again.influenced] == names
    assert again.influenced_deleted
    assert not folder.adapter_path.exists()
    assert not folder.checkpoints_path.exists()

    _weights(folder)  # trained anew, from what was left
    assert _forget(folder, "pi-3").influenced == ()


def test_nobody_waits_for_what_was_removed(folder, samples) -> None:
    del samples
    with Store.open(folder.store_path, max_bytes=64 * MIB) as store:
        assert (store.counts().train_samples_arrived, store.counts().devices_settled) == (114, 0)
    _forget(folder, "pi-3")
    with Store.open_read_only(folder.store_path) as store:
        counts = store.counts()
        assert (counts.train_samples, counts.train_samples_arrived) == (60, 114)
        assert (counts.finished_devices, counts.devices_settled) == (0, 1)


def _arrival(message: Any) -> Arrival:
    frames = tuple(map(bytes, encode(message)))
    return Arrival(identity=b"link", frames=frames, nbytes=sum(map(len, frames)))


def _ask(store: Store, bundle: Any, message: Any) -> Any:
    ingest = Ingest(
        store=store,
        bundles={bundle.bundle_id: bundle.manifest},
        credit_bytes=MIB,
        clock=lambda: 9.0,
        say=lambda _: None,
    )
    (answer,) = ingest.process([_arrival(message)])
    return answer.message


def test_a_forgotten_device_is_refused_until_it_is_readmitted(folder, samples, make_bundle, capsys) -> None:
    del samples
    bundle = make_bundle()
    hello = Hello(
        protocol=PROTOCOL_VERSION, software="t", device="pi-3", outbox="5" * 32, bundle_id=bundle.bundle_id,
        self_test_error=0.0, waiting_samples=1,
    )  # fmt: skip
    inquiry = Inquiry(protocol=PROTOCOL_VERSION, software="t", device="pi-3", bundle_id=bundle.bundle_id)
    _forget(folder, "pi-3")
    with Store.open(folder.store_path, max_bytes=64 * MIB) as store:
        for message in (hello, inquiry):
            refused = _ask(store, bundle, message)
            assert isinstance(refused, Refusal)
            assert (refused.code, refused.retry_after_s) == (RefusalCode.NOT_AUTHORISED, None)
            assert "told to forget pi-3" in refused.detail
        assert [summary.device for summary in store.device_summaries()] == ["phone"]
    assert main_forget(["pi-3", "--readmit", "--run", str(folder.path)]) == 0
    assert capsys.readouterr().out == "pi-3 may come in again, as a new device\n"
    with Store.open(folder.store_path, max_bytes=64 * MIB) as store:
        assert isinstance(_ask(store, bundle, hello), Welcome)
    with pytest.raises(UsageError, match="no forgotten device"):
        main_forget(["pi-3", "--readmit", "--run", str(folder.path)])


def test_the_command_prints_the_proof_and_what_comes_next(folder, samples, capsys) -> None:
    del samples
    _weights(folder)
    assert main(["forget", "pi-3", "--run", str(folder.path)]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "pi-3: 54 samples to train on and 6 held out are removed; its outboxes: 1"
    assert "found before; afterwards none in " in lines[2]
    assert "keeping what was learned" in lines[3]
    assert "--delete-adapters" in lines[4]
    assert lines[-1].endswith("--readmit")
    assert said.err == ""  # nothing here takes long
    assert main(["forget", "pi-3", "--run", str(folder.path)]) == 0
    assert "there were no bytes to look for" in capsys.readouterr().out


def test_the_command_prints_one_json_document(folder, samples, capsys) -> None:
    del samples
    assert main(["forget", "pi-3", "--run", str(folder.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["train_samples"], found["proof"]["shared"], found["influenced"]) == (54, 0, [])


def test_while_somebody_trains_nothing_is_removed(folder, samples, monkeypatch) -> None:
    del samples
    monkeypatch.setattr("sf_server.store.forget_command.LOCK_WAIT_S", 0.0)
    with folder.lock(), pytest.raises(AlreadyRunning, match="may be training on") as problem:
        main_forget(["pi-3", "--run", str(folder.path)])
    assert "--resume" in problem.value.cure
    with Store.open_read_only(folder.store_path) as store:
        assert store.counts().train_samples == 114


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pi-4"], "knows no device 'pi-4'; its devices are phone, pi-3"),
        ([], "either one device or samples of an age"),
        (["pi-3", "--older-than-days", "3"], "either one device or samples of an age"),
        (["--older-than-days", "3", "--readmit"], "goes without"),
        (["--older-than-days", "nan"], "takes a number of days"),
    ],
)
def test_mistakes_are_named(folder, samples, arguments: list[str], message: str) -> None:
    del samples
    with pytest.raises(UsageError, match=message):
        main_forget([*arguments, "--run", str(folder.path)])


def test_there_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run"):
        main_forget(["pi-3", "--run", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


NOW_S = 100 * DAY_S


@pytest.fixture
def aged(folder: RunFolder) -> dict[str, list[EncodedSample]]:
    """Samples that came 40, 20 and 0 days ago."""
    made = {age: [_sample(10 * age + n, seed=10 * age + n) for n in range(10)] for age in (40, 20, 0)}
    with Store.open(folder.store_path, max_bytes=64 * MIB) as store:
        _greet(store, "phone")
        for age, of_age in made.items():
            _add(store, "phone", of_age, now_s=NOW_S - age * DAY_S)
    return {str(age): of_age for age, of_age in made.items()}


def test_samples_older_than_their_time_are_removed_once_a_day(folder, aged) -> None:
    said: list[str] = []
    clock = [NOW_S]
    retention = Retention(folder, days=30, clock=lambda: clock[0], say=said.append)
    with Store.open_read_only(folder.store_path) as reader:
        retention.remove_expired()
        assert said == ["10 samples older than 30 days were removed; what the adapter has learned from them stays"]
        assert reader.sample_count() == 20
        assert reader.device_summaries()[0].samples == 20
        assert _found(folder, aged["40"]) == 0
        assert _found(folder, aged["20"]) >= 9
        clock[0] += 0.9 * DAY_S
        retention.remove_expired()
        clock[0] += 15 * DAY_S
        assert reader.sample_count() == 20
        retention.remove_expired()
        assert reader.sample_count() == 10
        assert reader.counts().train_samples_arrived == 30
    assert len(said) == 2


def test_nothing_is_said_when_nothing_is_too_old(folder, aged) -> None:
    del aged
    Retention(folder, days=41, clock=lambda: NOW_S, say=pytest.fail).remove_expired()


def test_old_samples_of_a_stopped_run_are_removed_by_the_command(folder, aged, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sf_server.store.forget_command.time.time", lambda: NOW_S)
    assert main_forget(["--older-than-days", "10", "--run", str(folder.path)]) == 0
    assert capsys.readouterr().out.startswith("20 samples older than 10 days are removed")
    assert _found(folder, aged["40"]) == _found(folder, aged["20"]) == 0
    assert _found(folder, aged["0"]) >= 9


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store at"):
        Remover(tmp_path / "store.sqlite")
