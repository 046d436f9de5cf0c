"""Whole runs of `sf-edge run` in this process, against a server that follows the protocol."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3

import numpy as np
import pytest

from sf_contract.codec import decode_rows, relative_row_errors
from sf_contract.messages import Finished, Refusal, RefusalCode, Role
from sf_edge.outbox import file as outbox_file
from sf_edge.outbox.place import DATABASE_FILE
from sf_edge.outbox.queue import Outbox, read_outbox_status
from sf_edge.outbox.records import Owner

TINY_PATIENCE = {"give_up_after_s": 0.3}


def roles(server) -> list[Role]:
    return [sample.role for _, sample in sorted(server.stored.items(), key=lambda item: item[0][1])]


def test_every_row_is_computed_once_uploaded_once_and_reported(edge, server) -> None:
    outcome = edge.run(server, edge.write(30), json=True)
    assert outcome.code == 0, outcome.err
    assert server.ordinals() == list(range(30))
    assert server.repeats == 0
    assert server.finished == [Finished(samples=30, rejected=0, skipped_rows=0)]
    summary = outcome.summary
    for name in ("rows", "samples", "forward_passes", "uploaded_samples", "acknowledged"):
        assert summary[name] == 30, name
    for name in ("skipped", "rejected", "resent_samples", "waiting", "cut", "not_finite"):
        assert summary[name] == 0, name
    payload = sum(sample.nbytes for sample in server.stored.values())
    assert payload < summary["bytes_up"] < 2 * payload
    assert summary["bytes_down"] < summary["bytes_up"] / 5
    assert summary["cpu_seconds"] > 0


def test_what_arrives_is_what_the_texts_give(edge, server, embeddings) -> None:
    edge.run(server, edge.write([{"text": "play the music", "label": "music"}]))
    (sample,) = server.stored.values()
    assert (sample.label, sample.role) == (1, Role.TRAIN)
    assert relative_row_errors(decode_rows(sample.rows), embeddings[[2, 3, 5]]).max() < 0.02


def test_tcp_to_this_machine_works_too(edge, make_server) -> None:
    with make_server(address="tcp://127.0.0.1:*") as server:
        assert edge.run(server, edge.write(5)).code == 0
        assert server.ordinals() == list(range(5))


def test_the_summary_for_people_goes_to_standard_error_alone(edge, server) -> None:
    outcome = edge.run(server, edge.write(3))
    assert outcome.out == ""
    assert "3 rows -> 3 samples, 3 stored, 0 waiting" in outcome.err


def test_the_same_command_again_sends_nothing_again(edge, server) -> None:
    data = edge.write(10)
    first = edge.run(server, data, json=True).summary
    second = edge.run(server, data, json=True).summary
    assert (second["forward_passes"], second["uploaded_samples"], second["resent_samples"]) == (10, 10, 0)
    assert second["outbox_id"] == first["outbox_id"]
    assert len(server.finished) == 2


def test_rows_appended_between_two_runs_are_taken_and_nothing_else(edge, server) -> None:
    data = edge.write(5)
    edge.run(server, data)
    with data.open("a") as stream:
        stream.write('{"text": "turn the lights off", "label": "lights"}\n')
    assert edge.run(server, data, json=True).summary["forward_passes"] == 6
    assert server.ordinals() == list(range(6))


def test_other_content_under_the_name_of_a_taken_file_is_refused_and_another_name_is_another_file(edge, server) -> None:
    edge.run(server, edge.write(5))
    other = [{"text": "play", "label": "music"}] * 9
    outcome = edge.run(server, edge.write(other))
    assert outcome.code == 12
    assert "rows.jsonl is not the file this outbox took its rows from" in outcome.err
    assert edge.run(server, edge.write(other, name="other.jsonl")).code == 0
    assert server.ordinals() == list(range(14))


def test_a_holdout_and_a_role_reach_the_server(edge, server, tmp_path) -> None:
    edge.run(server, edge.write(60), holdout=0.3)
    assert 8 <= roles(server).count(Role.VALIDATION) <= 28
    server.stored.clear()
    edge.run(server, edge.write(4), role="validation", outbox=tmp_path / "second")
    assert roles(server) == [Role.VALIDATION] * 4


def test_completions_travel_with_their_targets(edge, make_server, completion_bundle) -> None:
    data = edge.write([{"prompt": "turn the", "completion": "lights on"}])
    with make_server(completion_bundle) as server:
        assert edge.run(server, data, bundle=completion_bundle.folder).code == 0
        (sample,) = server.stored.values()
    assert sample.targets.tolist() == [-100, 4, 6]


def test_bad_rows_are_named_with_their_line_skipped_and_counted(edge, server) -> None:
    good = {"text": "turn", "label": "lights"}
    rows = [
        good, "not json", {"text": "no label"}, "[1]", {"text": "turn", "label": "weather"}, {"text": " ", "label": "music"},
        {"label": "music"}, {"text": "turn kaput", "label": "lights"}, good,
    ]  # fmt: skip
    outcome = edge.run(server, edge.write(rows), json=True)
    assert outcome.code == 0
    assert [f"line {n} skipped" in outcome.err for n in range(1, 10)] == [n in (2, 3, 4, 5, 6) for n in range(1, 10)]
    assert "2 more rows were skipped" in outcome.err
    summary = outcome.summary
    assert (summary["rows"], summary["skipped"], summary["not_finite"], summary["samples"]) == (9, 7, 1, 2)
    assert server.ordinals() == [0, 1]
    assert server.finished[0].skipped_rows == 7


def test_rejected_samples_are_set_aside_counted_and_shown(edge, make_server) -> None:
    with make_server(reject_ordinals=frozenset({1, 4})) as server:
        data = edge.write(6)
        outcome = edge.run(server, data)
        assert outcome.code == 0
        assert server.finished == [Finished(samples=6, rejected=2, skipped_rows=0)]
    assert "4 stored, 2 rejected" in outcome.err
    assert "set aside, label: 2" in outcome.err
    shown = edge.command("status", edge.outbox)
    assert shown.code == 0
    assert "line 5: label: not a label" in shown.out
    found = edge.command("status", edge.outbox, json=True).summary
    assert [item["ordinal"] for item in found["set_aside"]] == [1, 4]
    assert found["counters"]["rejected"] == 2


def test_a_small_credit_still_delivers_everything(edge, make_server) -> None:
    with make_server(credit_bytes=700) as server:
        outcome = edge.run(server, edge.write(25), json=True)
        assert outcome.summary["resent_samples"] == 0
        assert server.ordinals() == list(range(25))


def test_without_a_server_the_samples_wait_safely_and_are_not_computed_again(edge, make_server) -> None:
    server = make_server()
    data = edge.write(12)
    outcome = edge.run(server, data, **TINY_PATIENCE)
    assert outcome.code == 16
    assert server.address in outcome.err
    assert "12 samples wait safely" in outcome.err
    server.start()
    summary = edge.run(server, data, json=True).summary
    assert (summary["forward_passes"], summary["uploaded_samples"], summary["waiting"]) == (12, 12, 0)
    assert server.ordinals() == list(range(12))


def test_a_full_outbox_makes_the_source_wait(edge, make_server) -> None:
    server = make_server()
    data = edge.write(200)
    assert edge.run(server, data, max_outbox_bytes=9000, **TINY_PATIENCE).code == 16
    status = read_outbox_status(edge.outbox)
    assert 7000 < status.waiting_bytes <= 9000
    assert status.counters.rows < 200
    server.start()
    assert edge.run(server, data, max_outbox_bytes=9000, json=True).summary["forward_passes"] == 200
    assert server.ordinals() == list(range(200))


def test_a_refusal_for_good_ends_the_run_with_its_cause_and_keeps_the_samples(edge, make_server, make_bundle) -> None:
    with make_server(make_bundle("another", name="another")) as server:
        outcome = edge.run(server, edge.write(5))
    assert outcome.code == 17
    assert "another bundle" in outcome.err
    assert "Cure: give --bundle" in outcome.err
    assert read_outbox_status(edge.outbox).counters.acknowledged == 0


def test_a_refusal_with_a_delay_is_waited_out(edge, make_server) -> None:
    refusal = Refusal(code=RefusalCode.STORE_FULL, detail="disk full", retry_after_s=0.01)
    with make_server(refusals=[refusal]) as server:
        assert edge.run(server, edge.write(5)).code == 0
        assert len(server.hellos) == 2
        assert server.ordinals() == list(range(5))


def test_bytes_that_are_no_message_are_dropped_counted_and_told_once(edge, make_server) -> None:
    with make_server(garbage_first=True) as server:
        outcome = edge.run(server, edge.write(5))
    assert outcome.code == 0
    assert outcome.err.count("was dropped") == 1
    assert read_outbox_status(edge.outbox).counters.undecodable_messages == 1


def test_a_full_disk_is_named_and_the_next_run_goes_on(
    edge, server, make_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = edge.write(300)
    connect = outbox_file.connect

    def connect_to_small_disk(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.execute("PRAGMA max_page_count = 12")
        return connection

    with monkeypatch.context() as patched:
        patched.setattr(outbox_file, "connect", connect_to_small_disk)
        outcome = edge.run(make_server(), data)
        assert outcome.code == 19, outcome.err
        assert "committed so far is safe" in outcome.err
    assert edge.run(server, data, json=True).summary["samples"] == 300
    assert server.ordinals() == list(range(300))


def test_settings_may_come_from_a_file_and_flags_win(edge, server, tmp_path) -> None:
    options = edge.options(server, edge.write(3))
    config = tmp_path / "edge.toml"
    config.write_text(
        "".join(
            f"{key} = {json.dumps(value if isinstance(value, int) else str(value))}\n" for key, value in options.items()
        )
        + "holdout = 0.5\n"
    )
    outcome = edge.command("run", config=config, device="flag", json=True)
    assert outcome.code == 0, outcome.err
    assert outcome.summary["device"] == "flag"
    config.write_text("colour = 'red'\nthreads = 'two'\n")
    outcome = edge.command("run", config=config)
    assert outcome.code == 2
    assert "colour" in outcome.err
    assert "threads" in outcome.err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.jsonl", None, "cannot be read"),
        ("empty.jsonl", b"", "holds no rows"),
        ("blank.jsonl", b"\n\n", "holds no rows"),
        ("binary.jsonl", bytes(range(256)), "is not UTF-8 text: line 1 holds a zero byte at byte 1"),
        ("dump.jsonl", b"\x1f\x8b" + bytes(range(256)) * 9, "is a gzip file"),
        ("wide.jsonl", '{"text": "play", "label": "music"}\n'.encode("utf-16"), "is UTF-16 text"),
        ("header.csv", b"text,label\n", "holds no rows"),
        ("rows.parquet", b"PAR1", "unknown ending"),
        ("nothing.jsonl", b'{"text": ""}\nnope\n', "nothing usable: all 2 rows were skipped"),
    ],
)
def test_data_that_cannot_be_used_is_named(edge, server, name, content, says) -> None:
    data = edge.folder / name
    if content is not None:
        data.write_bytes(content)
    outcome = edge.run(server, data)
    assert outcome.code == 12
    assert says in outcome.err
    assert "Traceback" not in outcome.err


def test_a_pipe_in_place_of_a_file_is_refused_and_does_not_hang(edge, server, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    outcome = edge.run(server, tmp_path / "pipe.jsonl")
    assert outcome.code == 12
    assert "not a plain file" in outcome.err
    assert f"--data - < {tmp_path / 'pipe.jsonl'}" in outcome.err


def test_a_file_without_a_usable_row_can_be_corrected(edge, server, tmp_path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "turn", "label": "weather"}\n')
    assert edge.run(server, data).code == 12
    data.write_text('{"text": "turn", "label": "lights"}\n')
    assert edge.run(server, data).code == 0
    assert server.ordinals() == [0]


def test_a_tampered_bundle_is_refused(edge, server, make_bundle) -> None:
    tampered = make_bundle("tampered")
    graph = tampered.graph_path.read_bytes()
    tampered.graph_path.write_bytes(graph[:-1] + bytes([graph[-1] ^ 1]))
    outcome = edge.run(server, edge.write(3), bundle=tampered.folder)
    assert outcome.code == 13
    assert "was changed" in outcome.err
    assert server.hellos == []


def test_a_changed_bundle_begins_a_new_outbox_and_says_what_still_waits_in_the_old_one(
    edge, make_server, make_bundle
) -> None:
    data = edge.write(3)
    assert edge.run(make_server(), data, **TINY_PATIENCE).code == 16
    (before,) = edge.outbox.glob("*/outbox.sqlite3")
    changed = make_bundle("other", name="other")
    with make_server(changed) as server:
        outcome = edge.run(server, data, bundle=changed.folder, json=True)
        assert outcome.code == 0, outcome.err
        assert server.ordinals() == [0, 1, 2]
    assert f"bundle {changed.bundle_id[:12]} is another one than before: it begins a new outbox" in outcome.err
    assert f"3 samples of bundle {edge.bundle_id[:12]} still wait in {before.parent}" in outcome.err
    assert "run again with that bundle" in outcome.err
    assert read_outbox_status(before.parent).waiting_samples == 3
    several = edge.command("status", edge.outbox)
    assert several.code == 22
    assert "the outboxes of 2 bundles" in several.err
    again = edge.run(server, data, bundle=changed.folder, **TINY_PATIENCE)
    assert "begins a new outbox" not in again.err
    assert "still wait" in again.err
    with make_server() as server:
        assert edge.run(server, data, json=True).summary["forward_passes"] == 3
    assert read_outbox_status(before.parent).waiting_samples == 0


def test_two_edges_with_one_outbox_folder_are_refused_although_their_bundles_differ(
    edge, make_server, make_bundle
) -> None:
    data = edge.write(3)
    process = edge.start(make_server(), data)
    edge.wait_until_computed(3)
    other = make_bundle("other", name="other")
    outcome = edge.run(make_server(other), data, bundle=other.folder)
    assert outcome.code == 20
    assert "another sf-edge uses the outbox" in outcome.err
    process.kill()


def test_an_outbox_of_an_earlier_format_is_refused_by_name(edge, server, bundle) -> None:
    folder = edge.outbox / bundle.bundle_id[:16]
    folder.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(folder / DATABASE_FILE)) as connection:
        connection.execute("PRAGMA user_version = 1")
    outcome = edge.run(server, edge.write(3))
    assert outcome.code == 22
    assert f"{folder} has outbox format 1; this program reads 2" in outcome.err


def test_two_edges_on_one_outbox_are_refused(edge, server, bundle) -> None:
    owner = Owner(
        bundle_id=bundle.bundle_id,
        device="pi",
        codec=bundle.manifest.wire_codec,
        hidden=bundle.manifest.geometry.hidden,
    )
    with Outbox(edge.outbox, owner=owner, max_bytes=1000):
        outcome = edge.run(server, edge.write(3))
    assert outcome.code == 20
    assert "another sf-edge" in outcome.err


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"server": "nowhere"}, 2, "not an address"),
        ({"server": "tcp://10.1.2.3:5555"}, 2, "must be encrypted"),
        ({"server": "ipc:///tmp/" + "x" * 200}, 2, "cannot be used"),
        ({"max_tokens": 99}, 2, "bundle's 16"),
        ({"bundle": "missing"}, 13, "no bundle folder"),
        ({"holdout": 2}, 2, "--holdout"),
        ({"colour": "red"}, 2, "colour"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(edge, server, changes, code, says) -> None:
    outcome = edge.run(server, edge.write(3), **changes)
    assert outcome.code == code
    assert says in outcome.err
    assert outcome.err.splitlines()[-1].startswith("sf-edge: ")
    assert "Traceback" not in outcome.err


def test_verify_measures_the_self_test_on_this_machine(edge, bundle, tmp_path) -> None:
    found = edge.command("verify", bundle.folder, json=True).summary
    assert found["bundle_id"] == bundle.bundle_id
    assert 0 < found["self_test_error"] < found["allowed_error"]
    assert bundle.bundle_id in edge.command("verify", bundle.folder).out
    assert edge.command("verify", tmp_path / "missing").code == 13


def test_samples_of_many_runs_keep_the_order_of_the_file(edge, server, embeddings) -> None:
    data = edge.write(20)
    lines = data.read_text().splitlines(keepends=True)
    for stop in (3, 11, 20):
        data.write_text("".join(lines[:stop]))
        assert edge.run(server, data).code == 0
    tokens = [sample.rows.tokens for _, sample in sorted(server.stored.items(), key=lambda item: item[0][1])]
    assert tokens == [2 + 2 + i % 9 for i in range(20)]
    assert np.isfinite([sample.nbytes for sample in server.stored.values()]).all()
