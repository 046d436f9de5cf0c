"""Hostile folders: what an attacker, or a bad copy, can do to files without touching what the manifest says."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from hostile.bundle.attacks import attack
from sf_contract.bundle import CHECKSUM_FILE, MANIFEST_FILE, SIGNATURE_FILE, checksum_line
from support.tiny_bundle import GRAPH, TOKENIZER, VECTORS

SECRET = "secret.txt"
"""A file beside the bundle that nothing may open."""
TERABYTE = 2**40


def _link(folder: Path, name: str, target: Path | str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


@attack("not a plain file")
def graph_is_a_link_out_of_the_folder(folder: Path) -> None:
    """Unpacked by a service that runs as somebody else, a link has it read that somebody's files."""
    _link(folder, GRAPH, folder.parent / SECRET)


@attack("not a plain file")
def tokenizer_is_a_link_inside_the_folder(folder: Path) -> None:
    """Even a link to the right content can be pointed elsewhere after the check."""
    (folder / TOKENIZER).rename(folder / "tokenizer.copy")
    _link(folder, TOKENIZER, "tokenizer.copy")
    (folder / "tokenizer.copy").rename(folder.parent / "tokenizer.copy")


@attack("not a plain file")
def manifest_is_a_link(folder: Path) -> None:
    """The error about an unreadable manifest could quote the file it points to."""
    _link(folder, MANIFEST_FILE, folder.parent / SECRET)


@attack("not a plain file")
def manifest_is_an_endless_device(folder: Path) -> None:
    """Reading /dev/zero never ends; its size says 0."""
    _link(folder, MANIFEST_FILE, "/dev/zero")


@attack("not a plain file")
def signature_is_a_link(folder: Path) -> None:
    """The signature is no part of the manifest, so its own reading must be as careful."""
    _link(folder, SIGNATURE_FILE, folder.parent / SECRET)


@attack("not a plain file")
def checksum_is_a_link(folder: Path) -> None:
    """As for the signature."""
    _link(folder, CHECKSUM_FILE, folder.parent / SECRET)


@attack("does not belong")
def a_linked_folder_stands_beside_the_files(folder: Path) -> None:
    """Tools that copy or delete the bundle would follow it."""
    (folder / "more").symlink_to("/etc")


@attack("not a plain file")
def graph_is_a_pipe(folder: Path) -> None:
    """Opening a pipe waits for a writer: the device would hang without a word."""
    (folder / GRAPH).unlink()
    os.mkfifo(folder / GRAPH)


@attack("not a plain file")
def manifest_is_a_pipe(folder: Path) -> None:
    """The same before anything was checked."""
    (folder / MANIFEST_FILE).unlink()
    os.mkfifo(folder / MANIFEST_FILE)


@attack("not a plain file")
def signature_is_a_pipe(folder: Path) -> None:
    """The same after everything else was checked."""
    os.mkfifo(folder / SIGNATURE_FILE)


@attack("not a plain file")
def checksum_is_a_pipe(folder: Path) -> None:
    """The same."""
    (folder / CHECKSUM_FILE).unlink()
    os.mkfifo(folder / CHECKSUM_FILE)


@attack("not a plain file")
def vectors_are_a_socket(folder: Path) -> None:
    """Not a file, and not a folder either."""
    (folder / VECTORS).unlink()
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(folder)  # the name of a socket is limited to 108 bytes
        try:
            made.bind(VECTORS)
        finally:
            os.chdir(before)


@attack("not a plain file")
def tokenizer_is_a_folder(folder: Path) -> None:
    """Reading a folder is an error of the operating system, which must become ours."""
    (folder / TOKENIZER).unlink()
    (folder / TOKENIZER).mkdir()


@attack("does not belong")
def an_extra_file(folder: Path) -> None:
    """ONNX Runtime, or whoever copies the bundle, might use what nobody hashed."""
    (folder / "front_end.onnx.data").write_bytes(b"weights")


@attack("does not belong")
def an_extra_file_whose_name_commands_the_terminal(folder: Path) -> None:
    """Names are printed in errors; this one clears the screen and claims success on a line of its own."""
    (folder / "\x1b[2J\nbundle is whole").write_bytes(b"")


@attack("does not belong")
def an_extra_file_whose_name_is_no_text(folder: Path) -> None:
    """A name that is not UTF-8 cannot be printed as it is."""
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")).write_bytes(b"")


@attack("does not belong")
def a_hidden_extra_folder(folder: Path) -> None:
    """A listing without dot files would miss it."""
    (folder / ".cache").mkdir()


@attack("is missing")
def a_missing_graph(folder: Path) -> None:
    """An interrupted copy."""
    (folder / GRAPH).unlink()


@attack("is missing")
def a_missing_manifest(folder: Path) -> None:
    """An interrupted copy."""
    (folder / MANIFEST_FILE).unlink()


@attack("bytes, the manifest says")
def a_truncated_graph(folder: Path) -> None:
    """An interrupted copy."""
    content = (folder / GRAPH).read_bytes()
    (folder / GRAPH).write_bytes(content[: len(content) // 2])


@attack("was changed")
def other_weights_of_the_same_size(folder: Path) -> None:
    """A back door in the weights: one changed number."""
    content = bytearray((folder / GRAPH).read_bytes())
    content[len(content) // 2] ^= 0x40
    (folder / GRAPH).write_bytes(content)


@attack("bytes, the manifest says")
def vectors_of_a_terabyte(folder: Path) -> None:
    """A sparse file costs the attacker nothing; reading or hashing it would take hours and all the memory."""
    with (folder / VECTORS).open("ab") as stream:
        stream.truncate(TERABYTE)


@attack("more than")
def a_manifest_of_a_terabyte(folder: Path) -> None:
    """The same before its size can be compared with anything."""
    with (folder / MANIFEST_FILE).open("ab") as stream:
        stream.truncate(TERABYTE)


@attack("more than")
def a_signature_of_a_terabyte(folder: Path) -> None:
    """The same for the file that no hash covers."""
    with (folder / SIGNATURE_FILE).open("ab") as stream:
        stream.truncate(TERABYTE)


@attack("more than")
def a_checksum_of_a_terabyte(folder: Path) -> None:
    """The same."""
    with (folder / CHECKSUM_FILE).open("ab") as stream:
        stream.truncate(TERABYTE)


@attack("do not belong together")
def the_checksum_of_another_manifest(folder: Path) -> None:
    """Files of two bundles mixed in one folder."""
    (folder / CHECKSUM_FILE).write_bytes(checksum_line("0" * 64))


@attack("do not belong together")
def a_checksum_with_more_to_say(folder: Path) -> None:
    """Lines that a person would read, and no program checks."""
    with (folder / CHECKSUM_FILE).open("ab") as stream:
        stream.write(b"# checked by the security team\n")
