"""The server under attack, an honest device that must not notice, and the attacker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from sf_contract.activations import EncodedSample, pack
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.frames import MAGIC, Buffer, RawFrame, encode
from sf_contract.link_keys import LinkPublicKey, new_link_key
from sf_contract.manifest import Manifest
from sf_contract.messages import PROTOCOL_VERSION, AnyMessage, Hello, Role
from sf_server.ingest.ingest import Ingest
from sf_server.link.authorized import AuthorizedKeys
from sf_server.link.gate import Gate
from sf_server.link.notices import Notices
from sf_server.link.router import Arrival, Sender
from sf_server.store.store import Store
from support.tiny_bundle import HIDDEN, tiny_files, tiny_manifest

CREDIT_BYTES: Final = 20_000
BUNDLE_ID: Final = "ab" * 32
PHONE, MALLORY = "phone", "mallory"


def manifest() -> Manifest:
    """Two labels, rows of `HIDDEN` channels in int8, at most 16 tokens."""
    return msgspec.structs.replace(tiny_manifest(tiny_files()), wire_codec=WireCodec.INT8)


def sample(ordinal: int, *, tokens: int = 3, label: int | None = 1, seed: int | None = None) -> EncodedSample:
    """A good sample, whose rows follow from the seed (by default the ordinal)."""
    chance = np.random.default_rng(ordinal % 2**32 if seed is None else seed)
    rows = encode_rows(chance.normal(size=(tokens, HIDDEN)).astype(np.float32), WireCodec.INT8)
    return EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows, label=label)


def hello(device: str, **changes: Any) -> Hello:
    """A good greeting, and changes to it."""
    outbox = (device.encode().hex() + "0" * 32)[:32]
    good = Hello(
        protocol=PROTOCOL_VERSION, software="test", device=device, outbox=outbox, bundle_id=BUNDLE_ID,
        self_test_error=0.001, waiting_samples=1,
    )  # fmt: skip
    return msgspec.structs.replace(good, **changes)


def header(message: Mapping[str, object], buffers: Sequence[object] = ()) -> bytes:
    """Any message as a header, without a check."""
    return msgspec.json.encode({"message": message, "buffers": list(buffers)})


def headed(raw: bytes, *buffers: RawFrame) -> list[RawFrame]:
    """A message with these bytes as its header."""
    return [MAGIC, raw, *buffers]


@dataclass(frozen=True)
class Mallory:
    """What the attacker knows and can do: all that an honest device can."""

    identity: bytes = b"mallory's connection"

    @staticmethod
    def says(message: AnyMessage, buffers: Sequence[Buffer] = ()) -> list[RawFrame]:
        """A message as its frames."""
        return list(encode(message, buffers))

    def sends(self, *samples: EncodedSample) -> list[RawFrame]:
        """A batch."""
        return self.says(*pack(BUNDLE_ID, samples))


@dataclass
class Server:
    """An ingest without sockets. `phone` has greeted and sent sample 0."""

    store: Store
    keys_folder: Path | None
    now_s: float = 1000.0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys: dict[str, LinkPublicKey] = {}
        self.ingest = Ingest(
            store=self.store,
            bundles={BUNDLE_ID: manifest()},
            credit_bytes=CREDIT_BYTES,
            clock=lambda: self.now_s,
            say=self.lines.append,
            gate=None if self.keys_folder is None else self._gate(self.keys_folder),
        )
        self.ask(PHONE, encode(hello(PHONE)))
        self.ask(PHONE, encode(*pack(BUNDLE_ID, [sample(0)])))

    def ask(self, device: str, frames: Sequence[RawFrame], *, identity: bytes | None = None) -> AnyMessage:
        """The answer to one message of a device."""
        (answer,) = self.ingest.process([self.arrival(device, frames, identity=identity)])
        return answer.message

    def arrival(self, device: str, frames: Sequence[RawFrame], *, identity: bytes | None = None) -> Arrival:
        """A message as it comes from a device's connection, with its key if it has one."""
        whole = tuple(map(bytes, frames))
        return Arrival(
            identity=identity or device.encode(), frames=whole, nbytes=sum(map(len, whole)),
            sender=Sender(key=self.keys.get(device)),
        )  # fmt: skip

    def contents(self, device: str) -> object:
        """Everything that is stored of a device, but for times and counters of traffic."""
        rows = self.store._connection.execute(  # there is no reason for the store to offer this
            "SELECT ordinal, label, tokens, rows, scales FROM samples WHERE device = ? ORDER BY seq", (device,)
        ).fetchall()
        facts = [
            (s.outbox, s.bundle_id, s.samples, s.finished) for s in self.store.device_summaries() if s.device == device
        ]
        return rows, facts

    def _gate(self, folder: Path) -> Gate:
        for device in (PHONE, MALLORY):
            self.keys[device] = new_link_key().public
            (folder / f"{device}.pub").write_text(self.keys[device].line())
        authorized = AuthorizedKeys(folder, say=self.lines.append)
        authorized.refresh(now_s=0.0)
        return Gate(Notices(self.lines.append), authorized=authorized)
