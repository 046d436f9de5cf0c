"""Data files: JSON Lines and CSV, good rows and bad ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sf_contract.errors import DataError
from sf_contract.limits import MAX_RECORD_BYTES
from sf_contract.records import BadRow, RecordFormat, RecordParser, Row, read_records

Reader = Callable[..., list[Row | BadRow]]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Reads content as a file of the given name."""

    def read_content(content: str | bytes, *, name: str = "rows.jsonl", after_line: int = 0) -> list[Row | BadRow]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return list(read_records(path, after_line=after_line))

    return read_content


def outline(rows: list[Row | BadRow]) -> list[tuple[int, str]]:
    return [(row.line, "row" if isinstance(row, Row) else row.reason.split(":")[0]) for row in rows]


def test_json_lines_keep_their_order_and_line_numbers(read: Reader) -> None:
    assert read('{"a": "1"}\n\n  \n{"b": "2"}') == [Row(1, {"a": "1"}), Row(4, {"b": "2"})]


def test_bad_lines_are_reported_with_their_number_and_do_not_end_the_reading(read: Reader) -> None:
    rows = read('{"a": "1"}\nnope\n[1]\n"text"\n{"a": \n{"b": "2"}\n')
    assert outline(rows) == [
        (1, "row"),
        (2, "not JSON"),
        (3, "expected a JSON object, found list"),
        (4, "expected a JSON object, found str"),
        (5, "not JSON"),
        (6, "row"),
    ]


def test_values_become_text_and_null_means_absent(read: Reader) -> None:
    (row,) = read('{"s": "x", "n": 1, "f": 1.5, "b": true, "o": {"k": "ü"}, "z": null}')
    assert isinstance(row, Row)
    assert row.record == {"s": "x", "n": "1", "f": "1.5", "b": "true", "o": '{"k": "ü"}'}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_byte_order_mark_is_no_content(read: Reader, name: str) -> None:
    content = b'{"a": "1"}' if name.endswith("jsonl") else b"a\n1\n"
    (row,) = read(b"\xef\xbb\xbf" + content, name=name)
    assert isinstance(row, Row)
    assert row.record == {"a": "1"}


def test_a_line_that_is_too_long_is_one_bad_row(read: Reader) -> None:
    long = '{"a": "' + "x" * (2 * MAX_RECORD_BYTES + 5) + '"}'
    assert outline(read(f'{long}\n{{"a": "1"}}\n')) == [
        (1, f"the line is longer than {MAX_RECORD_BYTES} bytes"),
        (2, "row"),
    ]


def test_the_longest_line_allowed_is_read(read: Reader) -> None:
    text = "x" * (MAX_RECORD_BYTES - 10)
    (row,) = read('{"a": "' + text + '"}\n')
    assert isinstance(row, Row)
    assert row.record["a"] == text


def test_deeply_nested_json_is_a_bad_row(read: Reader) -> None:
    assert outline(read("[" * 100_000 + "\n")) == [(1, "not JSON")]


def test_json_of_any_depth_is_a_row_or_a_bad_row(read: Reader) -> None:
    depths = range(1, 1100)
    rows = read("".join(f'{{"a": {"[" * depth}{"]" * depth}}}\n' for depth in depths))
    assert [row.line for row in rows] == list(depths)
    assert isinstance(rows[0], Row)
    assert isinstance(rows[-1], BadRow)


@pytest.mark.parametrize("content", ['{"a": "\\ud800"}', '{"\\udfff": "a"}', '{"a": ["\\ud800"]}'])
def test_half_a_surrogate_pair_is_a_bad_row(read: Reader, content: str) -> None:
    rows = read(content)
    assert all(isinstance(row, BadRow) or row.record["a"].encode() for row in rows)
    assert read('{"a": "\\ud83d\\ude00"}') == [Row(1, {"a": "\U0001f600"})]


def test_a_number_of_thousands_of_digits_is_a_bad_row(read: Reader) -> None:
    assert outline(read('{"a": ' + "9" * 5000 + "}")) == [(1, "not JSON")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_has_a_header_quotes_and_line_breaks_in_fields(read: Reader, end: str) -> None:
    content = end.join(["text,label", '"a, ""b""",x', '"two', 'lines",y', ""])
    rows = read(content, name="rows.csv")
    assert [row.line for row in rows] == [2, 4]
    assert [row.record["label"] for row in rows if isinstance(row, Row)] == ["x", "y"]
    assert isinstance(rows[1], Row)
    assert rows[1].record["text"] == f"two{end}lines"


def test_csv_rows_with_other_columns_are_bad(read: Reader) -> None:
    rows = read("text,label\nonly\na,b,c\nx,y\n", name="rows.csv")
    assert outline(rows) == [(2, "expected 2 columns, found 1"), (3, "expected 2 columns, found 3"), (4, "row")]


def test_csv_with_a_broken_quote_reports_the_row(read: Reader) -> None:
    rows = read('text,label\n"a"b,c\nx,y\n', name="rows.csv")
    assert outline(rows)[0] == (2, "not CSV")
    assert rows[-1] == Row(3, {"text": "x", "label": "y"})


@pytest.mark.parametrize("content", ["", "a,a\n1,2\n"])
def test_csv_without_a_usable_header_is_refused(read: Reader, content: str) -> None:
    with pytest.raises(DataError, match="no usable header"):
        read(content, name="rows.csv")


@pytest.mark.parametrize("after_line", range(6))
def test_reading_after_a_line_gives_the_rest(read: Reader, after_line: int) -> None:
    content = '{"a": "1"}\nbad\n\n{"a": "2"}\n{"a": "3"}'
    assert read(content, after_line=after_line) == [row for row in read(content) if row.line > after_line]


def test_files_that_cannot_be_used_are_named(tmp_path: Path, read: Reader) -> None:
    with pytest.raises(DataError, match="unknown ending"):
        read("", name="rows.txt")
    with pytest.raises(DataError, match="not UTF-8"):
        read(b"\x80\x81")
    for path in (tmp_path / "missing.jsonl", tmp_path / "folder.jsonl"):
        if path.stem == "folder":
            path.mkdir()
        with pytest.raises(DataError, match="cannot be read"):
            list(read_records(path))


def test_the_ending_may_be_in_capitals(read: Reader) -> None:
    assert len(read('{"a": "1"}', name="ROWS.JSONL")) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), name=st.sampled_from(["rows.jsonl", "rows.csv"]))
def test_any_bytes_give_rows_or_a_data_error(read: Reader, content: bytes, name: str) -> None:
    try:
        rows = read(content, name=name)
    except DataError:
        return
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))


def test_plain_text_gives_one_record_per_line_that_is_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\r\n\r\n   \n  second line \nlast")
    assert list(read_records(path, text_field="text")) == [
        Row(1, {"text": "first"}),
        Row(4, {"text": "  second line "}),
        Row(5, {"text": "last"}),
    ]
    assert list(read_records(tmp_path / "notes.txt", text_field="t", after_line=4)) == [Row(5, {"t": "last"})]


def test_a_named_format_goes_before_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "rows.log"
    path.write_text('{"a": "1"}\n')
    assert list(read_records(path, record_format=RecordFormat.JSONL)) == [Row(1, {"a": "1"})]
    assert list(read_records(path, record_format=RecordFormat.TEXT, text_field="t")) == [Row(1, {"t": '{"a": "1"}'})]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": "1"}\n'.encode("utf-16"), "is UTF-16 text"),
        (b"\xfe\xff" + '{"a": "1"}\n'.encode("utf-16-be"), "is UTF-16 text"),
        ('{"a": "1"}\n'.encode("utf-32"), "is UTF-32 text"),
        ('{"a": "1"}\n'.encode("utf-16-le"), "line 1 holds a zero byte at byte 2"),
        ('{"a": "Straße"}\n'.encode("latin-1"), "line 1 is not UTF-8 text: byte 0xdf at byte 12"),
        (b"PK\x03\x04rest\n", "is a ZIP file"),
        (b"SQLite format 3\x00\n", "is an SQLite database"),
        (b"%PDF-1.7\n", "is a PDF file"),
        (b"\x00" * 3000, "holds a zero byte"),
        (bytes(2 * MAX_RECORD_BYTES) + b"\n", "holds a zero byte"),
        (b"bad\n\xff\xfe\xfd\n" * 10_000, "line 2 is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_what_is_not_text_is_refused_as_a_whole(read: Reader, name: str, content: bytes, says: str) -> None:
    if name.endswith("csv") and content.startswith(b"bad"):
        says = "line 2 is not UTF-8 text|no usable header"
    with pytest.raises(DataError, match=says):
        read(content, name=name)


@pytest.mark.parametrize("damage", [b"\x00\x00\x00\x00\n", b"caf\xe9\n"])
def test_damage_behind_good_rows_costs_its_own_line_only(read: Reader, damage: bytes) -> None:
    rows = read(b'{"a": "1"}\n' + damage + b'{"a": "2"}\n')
    assert [isinstance(row, Row) for row in rows] == [True, False, True]
    assert isinstance(rows[1], BadRow)
    assert rows[1].line == 2
    assert "byte" in rows[1].reason


def test_a_csv_record_without_a_closing_quote_is_one_bad_row_of_bounded_size(read: Reader) -> None:
    content = 'text\n"' + "word\n" * 300_000 + '"\nlast\n'
    rows = read(content, name="rows.csv")
    assert isinstance(rows[0], BadRow)
    assert "field larger than field limit" in rows[0].reason
    assert rows[0].line < 30_000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.sampled_from(['"a', 'b"', 'c,"d"', "e,f", "", '"x,""y""",z', "one,two", '"p\nq",r']), max_size=12
    ),
    size=st.integers(1, 9),
)
def test_csv_rows_are_the_same_however_the_bytes_come(read: Reader, lines: list[str], size: int) -> None:
    content = "k,v\n" + "".join(f"{line}\n" for line in lines)
    parser = RecordParser(RecordFormat.CSV, where="rows")
    found = []
    for start in range(0, len(content), size):
        parser.feed(content[start : start + size].encode())
        found += parser.rows()
    parser.end()
    found += parser.rows()
    assert found == read(content, name="rows.csv")
