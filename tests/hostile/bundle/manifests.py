"""Hostile manifests: the files are untouched, and the manifest's checksum is right, but what it says is not acceptable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hostile.bundle.attacks import attack
from sf_contract import limits
from sf_contract.bundle import MANIFEST_FILE
from support.tiny_bundle import GRAPH, TOKENIZER, canonical, manifest_fields, replace_manifest

Fields = dict[str, Any]


def _edit(folder: Path, change: Callable[[Fields], None]) -> None:
    """The manifest with a change, in canonical form, so that only the change can be what is refused."""
    fields = manifest_fields(folder)
    change(fields)
    replace_manifest(folder, canonical(fields))


def _replace_text(folder: Path, old: bytes, new: bytes) -> None:
    raw = (folder / MANIFEST_FILE).read_bytes()
    assert old in raw
    replace_manifest(folder, raw.replace(old, new, 1))


def _rename_graph(folder: Path, name: str) -> None:
    def change(fields: Fields) -> None:
        fields["graph_file"] = name
        next(file for file in fields["files"] if file["name"] == GRAPH)["name"] = name

    _edit(folder, change)


@attack("not a manifest")
def a_name_that_climbs_out(folder: Path) -> None:
    """`..` leads to any file the device may read."""
    _rename_graph(folder, "../secret.txt")


@attack("not a manifest")
def an_absolute_name(folder: Path) -> None:
    """Joined to a folder, an absolute path replaces it."""
    _rename_graph(folder, "/etc/passwd")


@attack("not a manifest")
def a_name_below_a_folder(folder: Path) -> None:
    """A folder may be a link, and its entries are not looked at."""
    _rename_graph(folder, "weights/front_end.onnx")


@attack("not a manifest")
def a_name_with_a_backslash(folder: Path) -> None:
    """A separator elsewhere."""
    _rename_graph(folder, "..\\secret.txt")


@attack("not a manifest")
def a_name_with_a_zero_byte(folder: Path) -> None:
    """The operating system sees another name than Python, or Python raises ValueError."""
    _rename_graph(folder, "front_end.onnx\0.txt")


@attack("not a manifest")
def a_name_that_ends_with_a_new_line(folder: Path) -> None:
    """`$` in a pattern lets one new line through."""
    _rename_graph(folder, "front_end.onnx\n")


@attack("not a manifest")
def a_name_in_wide_letters(folder: Path) -> None:
    """File systems that normalise names turn full-width dots and slashes into the ordinary ones."""
    _rename_graph(folder, "\uff0e\uff0e\uff0fsecret.txt")


@attack("not a manifest")
def the_folder_itself_as_a_name(folder: Path) -> None:
    """`.` is a name without a separator."""
    _rename_graph(folder, ".")


@attack("not a manifest")
def a_name_without_letters(folder: Path) -> None:
    """The empty name is the folder."""
    _rename_graph(folder, "")


@attack("not a manifest")
def a_name_that_is_too_long(folder: Path) -> None:
    """The operating system's error for it is not ours."""
    _rename_graph(folder, "x" * 4000)


@attack("lists a file twice")
def names_that_differ_in_case(folder: Path) -> None:
    """Memory cards are case-blind: one file would be checked, and the other read."""
    _edit(folder, lambda fields: fields["files"].append({**fields["files"][0], "name": GRAPH.upper()}))


@attack("lists a file twice")
def one_file_with_two_hashes(folder: Path) -> None:
    """Which of the two is checked?"""
    _edit(folder, lambda fields: fields["files"].append({**fields["files"][0], "sha256": "0" * 64}))


@attack("two roles")
def one_file_with_two_roles(folder: Path) -> None:
    """A file that is both a graph and a tokenizer has been made for something else."""
    _edit(folder, lambda fields: fields.update(tokenizer_file=GRAPH))


@attack("describes the bundle itself")
def the_signature_listed_as_a_file(folder: Path) -> None:
    """Nobody could sign such a bundle: the signature changes the manifest it signs."""
    entry = {"name": "manifest.sig", "nbytes": 0, "sha256": "0" * 64}
    _edit(folder, lambda fields: fields["files"].append(entry))


@attack("does not list")
def a_graph_that_is_not_listed(folder: Path) -> None:
    """What is not listed has no hash."""
    _edit(folder, lambda fields: fields["files"].pop(0))


@attack("more than")
def an_oversized_manifest(folder: Path) -> None:
    """Parsing gigabytes of JSON takes many times their size in memory."""
    replace_manifest(folder, b" " * (limits.MAX_MANIFEST_BYTES + 1))


@attack("not a manifest")
def a_deeply_nested_document(folder: Path) -> None:
    """A parser that calls itself runs out of stack, which in C is a crash."""
    replace_manifest(folder, b'{"tools":' * 50_000)


@attack("not a manifest")
def a_deeply_nested_value_in_a_valid_place(folder: Path) -> None:
    """The same where a value of any depth could stand."""
    _replace_text(folder, b'"tools":{', b'"tools":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b",")


@attack("not a manifest")
def a_number_of_a_thousand_digits(folder: Path) -> None:
    """Turning digits into a large number takes quadratic time."""
    _replace_text(folder, b'"hidden":6', b'"hidden":' + b"9" * 1000)


@attack("not a manifest")
def a_version_of_a_hundred_thousand_digits(folder: Path) -> None:
    """The one number without bounds; Python refuses to print numbers of more than 4,300 digits."""
    _replace_text(folder, b'"format_version":1', b'"format_version":' + b"9" * 100_000)


@attack("not a manifest")
def a_limit_that_is_no_number(folder: Path) -> None:
    """Every comparison with NaN is false, so a check written the wrong way round passes."""
    _replace_text(folder, b'"max_mean_error":0.01', b'"max_mean_error":NaN')


@attack("not a manifest")
def a_limit_without_end(folder: Path) -> None:
    """An infinite limit lets every graph pass the self-test."""
    _replace_text(folder, b'"max_mean_error":0.01', b'"max_mean_error":1e999')


@attack("not a manifest")
def a_negative_size(folder: Path) -> None:
    """read(-1) reads everything."""
    _edit(folder, lambda fields: fields["files"][0].update(nbytes=-1))


@attack("not a manifest")
def a_file_larger_than_any_bundle(folder: Path) -> None:
    """Memory set aside by what the manifest says, not by what is there."""
    _edit(folder, lambda fields: fields["files"][0].update(nbytes=2**62))


@attack("a tokenizer of more than")
def a_tokenizer_of_gigabytes(folder: Path) -> None:
    """A tokenizer is read whole, and parsed into several times its size."""
    _edit(folder, lambda fields: fields["files"][1].update(nbytes=3 * 2**30))


@attack("a graph of more than")
def a_graph_no_reader_takes(folder: Path) -> None:
    """Sizes of 2 GiB and more overflow in Protocol Buffers."""
    _edit(folder, lambda fields: fields["files"][0].update(nbytes=2**31))


@attack("lists more than")
def many_files_that_fill_the_memory_card(folder: Path) -> None:
    """Each is allowed, all of them are not."""
    more = [{"name": f"f{i}", "nbytes": 2**31, "sha256": "0" * 64} for i in range(3)]
    _edit(folder, lambda fields: fields["files"].extend(more))


@attack("not a manifest")
def more_files_than_any_bundle_has(folder: Path) -> None:
    """Work without end: opening and hashing thousands of files."""
    more = [{"name": f"f{i}", "nbytes": 0, "sha256": "0" * 64} for i in range(5000)]
    _edit(folder, lambda fields: fields["files"].extend(more))


@attack("canonical form")
def a_key_given_twice(folder: Path) -> None:
    """Two programs may take different ones of the two, and so disagree about the same bundle."""
    _replace_text(folder, b'"hidden":6', b'"hidden":5,"hidden":6')


@attack("unknown field")
def an_unknown_field(folder: Path) -> None:
    """What this program does not understand may change what the rest means."""
    _edit(folder, lambda fields: fields.update(post_install="curl example.org | sh"))


@attack("unknown field")
def an_unknown_field_further_inside(folder: Path) -> None:
    """The same, one level down."""
    _edit(folder, lambda fields: fields["self_test"].update(skip=True))


@attack("unknown field")
def an_unknown_field_with_a_name_of_half_a_megabyte(folder: Path) -> None:
    """Errors name what they refuse: this one would fill the log."""
    _edit(folder, lambda fields: fields.update({"x" * 500_000: 1}))


@attack("missing required field")
def a_missing_field(folder: Path) -> None:
    """A default that the maker did not choose."""
    _edit(folder, lambda fields: fields.pop("self_test"))


@attack("not a manifest")
def text_where_a_number_belongs(folder: Path) -> None:
    """Lenient readers turn "6" into 6, strict ones do not: they disagree about the same bundle."""
    _edit(folder, lambda fields: fields["geometry"].update(hidden="6"))


@attack("not a manifest")
def a_truth_value_where_a_number_belongs(folder: Path) -> None:
    """In Python, true is 1."""
    _edit(folder, lambda fields: fields["geometry"].update(split_layer=True))


@attack("canonical form")
def white_space(folder: Path) -> None:
    """Many byte strings for one content would give one bundle many ids."""
    replace_manifest(folder, msgspec.json.format((folder / MANIFEST_FILE).read_bytes()))


@attack("canonical form")
def another_order_of_keys(folder: Path) -> None:
    """The same."""
    fields = manifest_fields(folder)
    replace_manifest(folder, msgspec.json.encode(dict(sorted(fields.items(), reverse=True))))


@attack("canonical form")
def escaped_letters(folder: Path) -> None:
    """The same."""
    _replace_text(folder, b'"tiny"', b'"tin\\u0079"')


@attack("canonical form")
def a_whole_number_where_a_fraction_belongs(folder: Path) -> None:
    """The same."""
    _replace_text(folder, b'"max_mean_error":0.01', b'"max_mean_error":1')


@attack("not a manifest")
def a_byte_order_mark(folder: Path) -> None:
    """Invisible in an editor."""
    replace_manifest(folder, b"\xef\xbb\xbf" + (folder / MANIFEST_FILE).read_bytes())


@attack("not a manifest")
def bytes_that_are_no_text(folder: Path) -> None:
    """Decoding errors are not all of one type."""
    _replace_text(folder, b'"tiny"', b'"tin\xff"')


@attack("not a manifest")
def half_a_letter(folder: Path) -> None:
    """A lone surrogate is valid JSON for some parsers, and cannot be encoded again."""
    _replace_text(folder, b'"tiny"', b'"tin\\ud800"')


@attack("not a manifest")
def a_model_name_that_commands_the_terminal(folder: Path) -> None:
    """`sf-export inspect` prints it: colours, a cleared screen, a forged line "signed by ..."."""
    _edit(folder, lambda fields: fields["base_model"].update(name="\x1b[2Jtiny"))


@attack("not a manifest")
def a_label_of_two_lines(folder: Path) -> None:
    """Labels are printed too."""
    _edit(folder, lambda fields: fields["task"].update(labels=["lights\nsigned by you", "music"]))


@attack("format version 2")
def a_version_of_the_future(folder: Path) -> None:
    """Read as version 1, it would mean something else."""
    _edit(folder, lambda fields: fields.update(format_version=2))


@attack("test vectors of")
def vectors_shorter_than_their_tokens(folder: Path) -> None:
    """Compared with too few rows, NumPy may stretch one row over all of them."""
    _edit(folder, lambda fields: fields["self_test"].update(token_ids=[[1, 3, 4, 7], [2, 3, 5, 1]]))


@attack("test vectors of")
def rows_wider_than_the_file(folder: Path) -> None:
    """Memory for 65,536 channels per row."""
    _edit(folder, lambda fields: fields["geometry"].update(hidden=limits.MAX_HIDDEN))


@attack("outside the vocabulary")
def a_test_token_outside_the_vocabulary(folder: Path) -> None:
    """An index behind the end of the embedding table."""
    _edit(folder, lambda fields: fields["self_test"].update(token_ids=[[1, 3, 4, 99], [2, 3, 5]]))


@attack("outside the vocabulary")
def an_end_token_outside_the_vocabulary(folder: Path) -> None:
    """The same, once the first completion ends."""
    _edit(folder, lambda fields: fields["task"].update(end_token_id=99))


@attack("not a manifest")
def no_test_vectors(folder: Path) -> None:
    """A self-test without vectors passes on every machine."""
    _edit(folder, lambda fields: fields["self_test"].update(token_ids=[]))


@attack("outside the model")
def a_cut_behind_the_last_layer(folder: Path) -> None:
    """Nothing would be left to train."""
    _edit(folder, lambda fields: fields["geometry"].update(split_layer=2))


@attack("wire codec")
def a_codec_without_its_parameters(folder: Path) -> None:
    """Rows that nobody can decode."""
    _edit(folder, lambda fields: fields.update(wire_codec="int4"))


@attack("wire codec")
def codec_parameters_for_a_codec_without(folder: Path) -> None:
    """A file whose content nobody looks at."""

    def change(fields: Fields) -> None:
        fields["wire_file"] = "wire.f32"
        fields["files"].append({"name": "wire.f32", "nbytes": 72, "sha256": "0" * 64})

    _edit(folder, change)


@attack("bytes, the manifest says")
def a_wrong_size(folder: Path) -> None:
    """The manifest was changed instead of the file."""
    _edit(folder, lambda fields: fields["files"][1].update(nbytes=7))


@attack("was changed")
def a_wrong_hash(folder: Path) -> None:
    """The same."""

    def change(fields: Fields) -> None:
        next(file for file in fields["files"] if file["name"] == TOKENIZER)["sha256"] = "0" * 64

    _edit(folder, change)
