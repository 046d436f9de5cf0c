"""A server to attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hostile.wire.peers import Server
from sf_contract.limits import MIB
from sf_server.store.store import Store


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[[bool], Server]]:
    """Makes a server; with `has_keys` it receives encrypted."""
    with ExitStack() as opened:

        def make(has_keys: bool) -> Server:
            folder = tmp_path / "authorized" if has_keys else None
            if folder is not None:
                folder.mkdir(mode=0o700)
            store = opened.enter_context(Store.open(tmp_path / "store.sqlite", max_bytes=64 * MIB))
            return Server(store=store, keys_folder=folder)

        yield make
