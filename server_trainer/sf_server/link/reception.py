"""Opening the server's socket for a run: its limits from the bundles, its keys from the files, and what watches over both."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sf_contract import limits
from sf_contract.activations import sample_frame_bytes
from sf_contract.link_keys import LinkPublicKey, LinkSecretKey
from sf_contract.manifest import Manifest
from sf_server.link.authorized import AuthorizedKeys
from sf_server.link.gate import MEGABYTE, Gate
from sf_server.link.notices import Notices
from sf_server.link.router import Encryption, Router, RouterLimits
from sf_server.link.security import LinkChoice, device_options, read_server_key
from sf_server.settings import TrainSettings

OTHER_FILES: Final = 128
"""Descriptors besides connections: store, sockets, libraries."""

STRANGERS_SAID: Final = 100
"""Strangers may cause so many lines and no more."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Keys:
    """The server's own key, and who is authorized."""

    secret: LinkSecretKey
    authorized: AuthorizedKeys


class Reception:
    """How devices of a run are received; opens routers, one after the other if need be.

    Raises:
        UsageError: the server's key cannot be used.
    """

    def __init__(self, settings: TrainSettings, manifests: Sequence[Manifest], *, say: Say) -> None:
        self._settings = settings
        self._say = say
        self._notices = Notices(say, most=STRANGERS_SAID)
        self._door = router_limits(
            manifests, credit_bytes=settings.credit_bytes, connections=_possible_connections(settings, say)
        )
        self.keys = _keys(settings.link_choice(), say)

    def open(self, bind: str) -> Router:
        """Bind an address.

        Raises:
            UsageError, AddressInUse: it cannot be bound.
        """
        encryption = None if self.keys is None else Encryption(secret=self.keys.secret, admits=self._admits)
        return Router(bind, encryption=encryption, door=self._door, notices=self._notices)

    def gate(self, notices: Notices) -> Gate:
        """Names and rates, for ingest."""
        rate = self._settings.device_mb_per_s
        return Gate(
            notices,
            authorized=None if self.keys is None else self.keys.authorized,
            device_bytes_per_s=None if rate is None else rate * MEGABYTE,
        )

    def announce(self, address: str) -> None:
        """Say what devices need to come in."""
        if self.keys is None:
            return
        options = device_options(address, self.keys.secret, host=socket.gethostname())
        self._say(f"devices come in encrypted with: sf-edge run {options}")
        self._say(
            f"and with their .pub file in {self.keys.authorized.folder} as NAME.pub, NAME being the device's name"
        )

    def _admits(self, key: LinkPublicKey, address: str) -> bool:
        if self.keys is None or self.keys.authorized.names(key):
            return True
        self._notices.say_once(
            key,
            f"an unknown key {key.key_id} from {address} was refused; to accept it put its .pub file into "
            f"{self.keys.authorized.folder} as NAME.pub, NAME being the device's name",
        )
        return False


def router_limits(manifests: Sequence[Manifest], *, credit_bytes: int, connections: int) -> RouterLimits:
    """What a connection may do, from the largest sample that any bundle allows and the largest batch of several."""
    parts = [nbytes for manifest in manifests for nbytes in _sample_frames(manifest)]
    sample_bytes = max(sum(_sample_frames(manifest)) for manifest in manifests)
    message_bytes = limits.MAX_HEADER_BYTES + max(sample_bytes, limits.MAX_SHARED_BATCH_BYTES)
    return RouterLimits(
        frame_bytes=min(max(limits.MAX_HEADER_BYTES, limits.MAX_SHARED_BATCH_BYTES, *parts), limits.MAX_BUFFER_BYTES),
        undelivered_bytes=2 * (credit_bytes + message_bytes),
        connections=connections,
    )


def _sample_frames(manifest: Manifest) -> tuple[int, ...]:
    geometry = manifest.geometry
    return sample_frame_bytes(manifest.wire_codec, hidden=geometry.hidden, tokens=geometry.max_tokens)


def _keys(choice: LinkChoice, say: Say) -> Keys | None:
    if not choice.is_encrypted:
        return None
    return Keys(secret=read_server_key(choice), authorized=AuthorizedKeys(choice.authorized_path, say=say))


def _possible_connections(settings: TrainSettings, say: Say) -> int:
    """What was asked for, as far as the system lets this process have descriptors; raises the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + OTHER_FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    possible = min(settings.max_connections, max(1, soft - OTHER_FILES))
    if possible < settings.max_connections:
        say(f"only {possible} connections are possible: the system allows this process {soft} open files")
    return possible
