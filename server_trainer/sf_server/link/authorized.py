"""The folder of authorized keys: one file NAME.pub per device, read again whenever it changes.

A file's name is the name of the device, and a key may use only the names of its files. A file may hold several keys, one a
line: that is how a device's key is replaced without a gap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.errors import UsageError
from sf_contract.key_files import PUBLIC_KEY_SUFFIX
from sf_contract.limits import MAX_AUTHORISED_KEY_FILES
from sf_contract.link_keys import LinkPublicKey, read_link_public_keys
from sf_contract.messages import DeviceName

LOOK_EVERY_S: Final = 1.0
NO_NAMES: Final = frozenset[str]()


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What tells a changed file from an unchanged one."""

    inode: int
    modified_ns: int
    nbytes: int


class AuthorizedKeys:
    """Which key may use which device names.

    Args:
        folder: where the files are; without it nobody is authorized.
        say: takes a line about a file that cannot be used.
    """

    def __init__(self, folder: Path, *, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._say = say
        self._stamps: dict[str, _Stamp] | None = None
        self._names: Mapping[LinkPublicKey, frozenset[str]] = {}
        self._looked_s = float("-inf")

    def names(self, key: LinkPublicKey | None) -> frozenset[str]:
        """Device names that this key may use; none when it is not authorized."""
        return NO_NAMES if key is None else self._names.get(key, NO_NAMES)

    @property
    def devices(self) -> int:
        """How many device names are authorized."""
        return len(frozenset[str]().union(*self._names.values()))

    def refresh(self, *, now_s: float) -> bool:
        """Look at the folder if the last look is a second ago; True when something changed."""
        if now_s - self._looked_s < LOOK_EVERY_S:
            return False
        self._looked_s = now_s
        stamps = self._look()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        self._names = self._read(sorted(stamps))
        return True

    def _look(self) -> dict[str, _Stamp]:
        try:
            files = [file for file in self.folder.iterdir() if file.name.endswith(PUBLIC_KEY_SUFFIX)]
        except OSError:
            return {}
        stamps: dict[str, _Stamp] = {}
        for file in sorted(files)[:MAX_AUTHORISED_KEY_FILES]:
            try:
                status = file.stat()
            except OSError:  # it was removed just now
                continue
            stamps[file.name] = _Stamp(status.st_ino, status.st_mtime_ns, status.st_size)
        return stamps

    def _read(self, file_names: list[str]) -> dict[LinkPublicKey, frozenset[str]]:
        names: defaultdict[LinkPublicKey, set[str]] = defaultdict(set)
        for file_name in file_names:
            name = file_name.removesuffix(PUBLIC_KEY_SUFFIX)
            for key in self._keys_of(file_name, name):
                names[key].add(name)
        return {key: frozenset(found) for key, found in names.items()}

    def _keys_of(self, file_name: str, name: str) -> list[LinkPublicKey]:
        path = self.folder / file_name
        try:
            msgspec.convert(name, DeviceName)
            return read_link_public_keys(path)
        except msgspec.ValidationError:
            self._say(f"{path} authorizes nobody: {name!r} cannot be a device's name; rename the file")
        except UsageError as problem:
            self._say(f"{path} authorizes nobody: {problem.one_line()}")
        return []
