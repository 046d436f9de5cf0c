"""Whole runs of `sf-edge run` on text files, folders and standard input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tracemalloc

import pytest

from sf_contract.limits import MIB
from sf_contract.messages import Role
from sf_edge.link.dealer import Link
from sf_edge.outbox.queue import read_outbox_status
from sf_edge.sources import opening


def json_line(text: str, label: str = "music") -> bytes:
    return json.dumps({"text": text, "label": label}).encode() + b"\n"


def labels(server) -> list[int]:
    return [sample.label for _, sample in sorted(server.stored.items(), key=lambda item: item[0][1])]


def test_a_text_file_gives_every_line_the_label_named(edge, server, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("play the music\n\nturn it on\n")
    outcome = edge.run(server, tmp_path / "notes.txt", label="music", json=True)
    assert outcome.code == 0, outcome.err
    assert labels(server) == [1, 1]


def test_a_label_named_is_for_rows_without_one(edge, server) -> None:
    edge.run(
        server,
        edge.write([{"text": "turn"}, {"text": "play", "label": "music"}, '{"text": "on", "label": " "}']),
        label="lights",
    )
    assert labels(server) == [0, 1, 0]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({}, 12, "notes.txt is plain text, but its lines have no label; --label NAME"),
        ({"label": "weather"}, 2, "'weather' is not a label of this bundle. Cure: give one of these: lights, music"),
        ({"format": "text"}, 2, "--format text cannot be used"),
        ({"format": "xml"}, 2, "--format"),
    ],
)
def test_text_that_cannot_be_used_is_explained(edge, server, options, code, says) -> None:
    (edge.folder / "notes.txt").write_text("play the music\n")
    outcome = edge.run(server, edge.folder / "notes.txt", **options)
    assert outcome.code == code
    assert says in outcome.err
    assert server.hellos == []


def test_text_for_a_bundle_that_completes_prompts_names_the_missing_columns(
    edge, server, completion_bundle, tmp_path
) -> None:
    (tmp_path / "notes.txt").write_text("play the music\n")
    outcome = edge.run(server, tmp_path / "notes.txt", bundle=completion_bundle.folder)
    assert outcome.code == 12
    assert "can fill one column only, and the bundle's template has these columns: prompt, completion" in outcome.err


def test_when_every_label_is_unknown_the_error_lists_those_of_the_bundle(edge, server) -> None:
    outcome = edge.run(server, edge.write([{"text": "turn", "label": f"L{i}"} for i in range(40)]))
    assert outcome.code == 12
    assert "line 1 skipped: label 'L0' is unknown" in outcome.err
    assert "all 40 rows were skipped" in outcome.err
    assert "the bundle's labels are lights, music" in outcome.err


def test_a_line_of_ten_megabytes_is_skipped_named_and_never_held(edge, server, tmp_path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_bytes(json_line("turn") + b'{"text": "' + b"x" * (10 * MIB) + b'"}\n' + json_line("play"))
    tracemalloc.start()
    outcome = edge.run(server, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcome.code == 0, outcome.err
    assert "line 2 skipped: the line is longer than 1048576 bytes" in outcome.err
    assert server.ordinals() == [0, 1]
    assert peak < 6 * MIB


def test_a_folder_is_taken_file_by_file_and_once(edge, server, tmp_path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "b.csv").write_text("text,label\nplay,music\nwrong\n")
    (inbox / "a.jsonl").write_bytes(json_line("turn", "lights") + json_line("on", "lights"))
    outcome = edge.run(server, inbox, json=True)
    assert outcome.code == 0, outcome.err
    assert labels(server) == [0, 0, 1]
    assert f"{inbox / 'b.csv'}, line 3 skipped" in outcome.err
    (inbox / "a.jsonl").unlink()
    (inbox / "c.jsonl").write_bytes(json_line("off", "lights"))
    assert edge.run(server, inbox, json=True).summary["forward_passes"] == 4
    sources = edge.command("status", edge.outbox, json=True).summary["sources"]
    assert [(source["name"], source["line"]) for source in sources] == [("a.jsonl", 2), ("b.csv", 3), ("c.jsonl", 1)]
    assert "b.csv up to line 3" in edge.command("status", edge.outbox).out
    (inbox / "c.jsonl").write_bytes(json_line("changed", "lights"))
    outcome = edge.run(server, inbox)
    assert outcome.code == 12
    assert f"{inbox / 'c.jsonl'} is not the file this outbox took its rows from" in outcome.err


def test_an_empty_folder_is_an_error_unless_it_is_watched(edge, server, tmp_path) -> None:
    (tmp_path / "inbox").mkdir()
    outcome = edge.run(server, tmp_path / "inbox")
    assert outcome.code == 12
    assert "holds no data files" in outcome.err
    process = edge.start(server, tmp_path / "inbox", watch=True)
    server.wait_for(lambda: len(server.hellos) == 1)
    (tmp_path / "inbox" / "a.jsonl.tmp").write_bytes(json_line("play"))
    (tmp_path / "inbox" / "a.jsonl.tmp").rename(tmp_path / "inbox" / "a.jsonl")
    server.wait_for(lambda: len(server.stored) == 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143


def test_a_watched_folder_resumes_after_kill_9_without_a_gap_or_a_repeat(edge, server, tmp_path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for number in range(3):
        (inbox / f"{number}.jsonl").write_bytes(b"".join(json_line(f"w{number} w{i}") for i in range(10)))
        process = edge.start(server, inbox, watch=True)
        server.wait_for(lambda number=number: len(server.stored) == 10 * (number + 1))
        process.kill()
        process.wait()
    assert edge.run(server, inbox, json=True).summary["forward_passes"] == 30
    assert server.ordinals() == list(range(30))


def test_acknowledgements_are_handled_while_standard_input_is_silent(edge, server) -> None:
    process = edge.start(server, "-", stdin=subprocess.PIPE, json=True)
    process.stdin.write(json_line("turn", "lights").decode())
    process.stdin.flush()
    server.wait_for(lambda: len(server.stored) == 1)
    edge.wait_until_computed(0)  # acknowledged and forgotten, while the pipe is open and silent
    assert read_outbox_status(edge.outbox).counters.acknowledged == 1
    assert process.poll() is None
    out, err = process.communicate(json_line("play").decode(), timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out)["samples"] == 2


def test_a_pipe_ends_the_wait_for_the_server_while_a_row_is_missing(
    edge, server, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(opening, "_DESCRIPTOR", reader)
    wait = Link.wait
    waits = []

    def wait_and_write(link: Link, timeout_s: float, *, wake_descriptors: list[int]) -> None:
        waits.append(reader in wake_descriptors)
        if len(waits) == 1:
            os.write(writer, json_line("play"))
            os.close(writer)
        wait(link, timeout_s, wake_descriptors=wake_descriptors)

    monkeypatch.setattr(Link, "wait", wait_and_write)
    assert edge.run(server, "-").code == 0
    os.close(reader)
    assert waits[0], "the pipe was empty"
    assert not waits[-1], "an ended pipe stays readable, and would end every wait"
    assert server.ordinals() == [0]


def test_standard_input_goes_on_counting_lines_after_a_restart(edge, server) -> None:
    for text in ("turn", "play"):
        process = edge.start(server, "-", stdin=subprocess.PIPE)
        _, err = process.communicate(json_line(text).decode() + "nonsense\n", timeout=30)
        assert process.returncode == 0, err
    assert "standard input, line 4 skipped" in err
    assert server.ordinals() == [0, 1]


def test_standard_input_may_be_a_file_a_named_pipe_or_empty(edge, server, tmp_path) -> None:
    data = edge.write(5)
    with data.open("rb") as stream:
        process = edge.start(server, "-", stdin=stream.fileno())
        assert process.wait(30) == 0
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(
        tmp_path / "fifo", os.O_RDWR
    )  # held open by both ends, like `< fifo` with a writer that comes and goes
    process = edge.start(server, "-", stdin=reader, format="text", label="music")
    os.write(reader, b"play\n")
    server.wait_for(lambda: len(server.stored) == 6)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    os.close(reader)
    process = edge.start(server, "-", stdin=subprocess.DEVNULL, outbox=tmp_path / "second")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 12
    assert "standard input holds nothing usable" in err


def test_watching_standard_input_is_refused(edge, server) -> None:
    outcome = edge.run(server, "-", watch=True)
    assert outcome.code == 2
    assert "--watch is for files and folders" in outcome.err


@pytest.mark.parametrize("kind", ["text", "folder", "standard input"])
def test_a_holdout_holds_for_every_source(edge, server, tmp_path, kind) -> None:
    texts = [f"w{i % 40} w{i // 3} w{i % 7}" for i in range(60)]
    (tmp_path / "inbox").mkdir()
    path = tmp_path / "inbox" / "notes.txt"
    path.write_text("".join(f"{text}\n" for text in texts))
    options = {"label": "music", "holdout": 0.4}
    if kind == "standard input":
        with path.open("rb") as stream:
            assert edge.start(server, "-", stdin=stream.fileno(), format="text", **options).wait(60) == 0
    else:
        assert edge.run(server, path if kind == "text" else path.parent, **options).code == 0
    found = [sample.role for _, sample in sorted(server.stored.items(), key=lambda item: item[0][1])]
    assert 10 <= found.count(Role.VALIDATION) <= 40
    server.stored.clear()
    edge.run(
        server, edge.write([{"text": text, "label": "music"} for text in texts]), holdout=0.4, outbox=tmp_path / "o2"
    )
    again = [sample.role for _, sample in sorted(server.stored.items(), key=lambda item: item[0][1])]
    assert found == again, "the role depends on the text alone"
