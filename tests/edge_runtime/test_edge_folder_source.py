"""A folder as the source: every file once, whatever comes, grows, goes or gets another name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from sf_contract.errors import DataError
from sf_contract.records import RecordFormat, Row
from sf_edge.sources import SourcePosition
from sf_edge.sources.files import FilesSource, Surroundings
from sf_edge.sources.listing import Folder, is_temporary
from sf_edge.sources.reading_rules import ReadingRules
from sf_edge.sources.rotation import reconcile, rotated_base


class Watcher:
    """A source over a folder, with the positions that an outbox would keep, and a clock that the test moves."""

    def __init__(self, folder: Path, *, watch: bool = True, rules: ReadingRules | None = None) -> None:
        self.folder = folder
        self.positions: dict[str, SourcePosition] = {}
        self.said: list[str] = []
        self.moves: list[Mapping[str, str]] = []
        self._now_s = 0.0
        self._watch = watch
        self._rules = rules or ReadingRules()
        self.restart()

    def restart(self) -> None:
        around = Surroundings(clock=lambda: self._now_s, say=self.said.append, move=self._note)
        self.source = FilesSource(
            Folder(self.folder), positions=self.positions, rules=self._rules, watch=self._watch, around=around
        )

    def write(self, name: str, *texts: str, mode: str = "w") -> Path:
        with (self.folder / name).open(mode) as stream:
            stream.writelines(f'{{"text": "{text}"}}\n' for text in texts)
        return self.folder / name

    def found(self) -> list[str]:
        """Texts that the next look gives."""
        self._now_s = max(self._now_s, self.source.next_look_s)
        texts = []
        while (taken := self.source.take()) is not None:
            self.positions[taken.position.source] = taken.position
            assert isinstance(taken.row, Row)
            texts.append(taken.row.record["text"])
        return texts

    def _note(self, moves: Mapping[str, str]) -> None:
        self.moves.append(dict(moves))
        moved = {present: self.positions.pop(earlier) for earlier, present in moves.items()}
        self.positions.update(moved)


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher(tmp_path)


def test_new_and_growing_files_are_taken_in_the_order_of_their_names_each_line_once(watcher: Watcher) -> None:
    watcher.write("b.jsonl", "b1", "b2")
    watcher.write("a.jsonl", "a1")
    assert watcher.found() == ["a1", "b1", "b2"]
    assert watcher.found() == []
    watcher.write("c.jsonl", "c1")
    watcher.write("a.jsonl", "a2", mode="a")
    assert watcher.found() == ["a2", "c1"]
    watcher.restart()
    assert watcher.found() == []
    watcher.write("b.jsonl", "b3", mode="a")
    assert watcher.found() == ["b3"]
    assert not watcher.source.exhausted


def test_a_folder_that_is_not_watched_ends_with_the_files_that_are_there(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, watch=False)
    watcher.write("a.jsonl", "a1")
    (tmp_path / "b.jsonl").write_text('{"text": "without line end"}')
    assert watcher.found() == ["a1", "without line end"]
    assert watcher.source.exhausted


def test_files_of_every_format_are_read_by_their_endings(watcher: Watcher) -> None:
    (watcher.folder / "a.csv").write_text("text\nfrom csv\n")
    watcher.write("b.ndjson", "from json")
    (watcher.folder / "c.txt").write_text("from text\n")
    assert watcher.found() == ["from csv", "from json", "from text"]


def test_hidden_temporary_foreign_and_nested_files_are_left_alone(watcher: Watcher) -> None:
    for name in (".hidden.jsonl", "~lock.jsonl", "a.jsonl.tmp", "a.jsonl.part", "b.jsonl~", "photo.png", "#c.jsonl"):
        watcher.write(name, "no")
    (watcher.folder / "deeper").mkdir()
    watcher.write("deeper/d.jsonl", "no")
    (watcher.folder / "link.jsonl").symlink_to("nowhere")
    watcher.write("yes.jsonl", "yes")
    assert watcher.found() == ["yes"]
    assert next(line for line in watcher.said if "left alone" in line).endswith("the first is photo.png")
    watcher.write("a.jsonl.tmp", "complete").rename(watcher.folder / "a.jsonl")
    assert watcher.found() == ["complete"]
    assert len(watcher.said) == 1


def test_a_named_format_takes_files_of_any_name_but_temporary_ones(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, rules=ReadingRules(record_format=RecordFormat.TEXT))
    (tmp_path / "message-17").write_text("seventeen\n")
    (tmp_path / "message-18.part").write_text("eight")
    assert watcher.found() == ["seventeen"]


def test_a_taken_file_may_go_and_files_like_it_are_not_taken_for_it(watcher: Watcher) -> None:
    watcher.write("message-1.jsonl", "yes").unlink()
    watcher.write("message-1.jsonl", "yes")
    assert watcher.found() == ["yes"]
    (watcher.folder / "message-1.jsonl").unlink()
    assert watcher.found() == []
    watcher.write("message-2.jsonl", "yes")
    assert watcher.found() == ["yes"]


def test_numbered_files_without_an_ending_that_come_and_go_are_not_taken_for_rotated_ones(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, rules=ReadingRules(record_format=RecordFormat.TEXT))
    (tmp_path / "message-1").write_text("yes\n")
    assert watcher.found() == ["yes"]
    (tmp_path / "message-1").rename(tmp_path / "message-2")
    assert watcher.found() == ["yes"]


def test_a_file_whose_taken_part_changed_is_an_error_that_names_it(watcher: Watcher) -> None:
    watcher.write("a.jsonl", "a1")
    watcher.write("b.jsonl", "b1", "b2")
    watcher.found()
    watcher.write("b.jsonl", "B1", "b2")
    with pytest.raises(DataError, match=r"b\.jsonl is not the file.*lines 1 to 2 have changed") as caught:
        watcher.found()
    assert "new file name" in caught.value.cure


def test_a_change_between_two_runs_is_noticed_too(watcher: Watcher) -> None:
    watcher.write("a.jsonl", "a1", "a2")
    watcher.found()
    watcher.write("a.jsonl", "a2")
    watcher.restart()
    with pytest.raises(DataError, match=r"a\.jsonl is not the file"):
        watcher.found()


def test_a_binary_file_in_the_folder_is_named(watcher: Watcher) -> None:
    (watcher.folder / "a.jsonl").write_bytes(b"\x7fELF\x02\x01\x01\x00" + bytes(1000))
    with pytest.raises(DataError, match=r"a\.jsonl is not UTF-8 text"):
        watcher.found()


def test_logs_that_are_rotated_in_a_chain_are_followed(watcher: Watcher) -> None:
    watcher.write("app.jsonl", "one")
    assert watcher.found() == ["one"]
    for new, late in (("two", "one late"), ("three", "two late"), ("four", "three late")):
        watcher.write("app.jsonl", late, mode="a")
        for number in (2, 1):
            if (watcher.folder / f"app.jsonl.{number}").exists():
                (watcher.folder / f"app.jsonl.{number}").rename(watcher.folder / f"app.jsonl.{number + 1}")
        (watcher.folder / "app.jsonl").rename(watcher.folder / "app.jsonl.1")
        watcher.write("app.jsonl", new)
        assert sorted(watcher.found()) == sorted([late, new])
        watcher.restart()
    assert sorted(watcher.positions) == ["app.jsonl", "app.jsonl.1", "app.jsonl.2", "app.jsonl.3"]
    assert watcher.moves[-1] == {"app.jsonl": "app.jsonl.1", "app.jsonl.1": "app.jsonl.2", "app.jsonl.2": "app.jsonl.3"}


@pytest.mark.parametrize(
    ("name", "base"),
    [("a.jsonl.1", "a.jsonl"), ("a.jsonl-20261124", "a.jsonl"), ("a.log.2026-11-24_10", "a.log"),
     ("a.jsonl", "a.jsonl"), ("msg-0001.txt", "msg-0001.txt"), (".1", ".1")],
)  # fmt: skip
def test_the_name_before_rotation(name: str, base: str) -> None:
    assert rotated_base(name) == base


def test_a_replaced_file_is_followed_only_to_where_its_content_is() -> None:
    known = {"a": SourcePosition(3, "d", 30, "a")}
    assert reconcile(known, ["a", "a.1"], lambda name, _: name == "a.1").moves == {"a": "a.1"}
    assert reconcile(known, ["a", "a.1"], lambda name, _: False).changed == ["a"]
    assert reconcile(known, ["a", "b.1"], lambda name, _: name == "b.1").changed == ["a"]
    assert reconcile(known, ["a", "a.1"], lambda name, _: True).moves == {}


def test_temporary_names() -> None:
    assert [name for name in (".a", "a~", "a.TMP", "a.txt", "a.part") if not is_temporary(name)] == ["a.txt"]
