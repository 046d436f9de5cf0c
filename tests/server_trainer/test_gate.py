"""Ingest with keys and rates: no sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sf_contract.activations import pack
from sf_contract.frames import encode
from sf_contract.link_keys import LinkPublicKey, new_link_key
from sf_contract.messages import PROTOCOL_VERSION, Ack, AnyMessage, Hello, Ping, Pong, Refusal, RefusalCode, Welcome
from sf_server.ingest.ingest import Ingest
from sf_server.link.authorized import AuthorizedKeys
from sf_server.link.gate import Gate
from sf_server.link.notices import Notices
from sf_server.link.router import UNKNOWN_SENDER, Arrival, Sender
from sf_server.store.store import Store

CREDIT_BYTES = 100_000
PI, PHONE = new_link_key().public, new_link_key().public
FIRST, SECOND = b"first-link", b"second-link"


class Reception:
    """An ingest without sockets that knows two keys, and everything it says."""

    def __init__(self, folder: Path, bundle: Any, store: Store, *, device_bytes_per_s: float | None) -> None:
        self.now_s = 1000.0
        self.lines: list[str] = []
        self.folder = folder
        self.folder.mkdir()
        for name, key in (("pi", PI), ("phone", PHONE)):
            (folder / f"{name}.pub").write_text(key.line())
        self.keys = AuthorizedKeys(folder, say=self.lines.append)
        self.keys.refresh(now_s=0)
        self.bundle = bundle
        self.ingest = Ingest(
            store=store,
            bundles={bundle.bundle_id: bundle.manifest},
            credit_bytes=CREDIT_BYTES,
            clock=lambda: self.now_s,
            say=self.lines.append,
            gate=Gate(Notices(self.lines.append), authorized=self.keys, device_bytes_per_s=device_bytes_per_s),
        )

    def ask(self, message: AnyMessage, *samples: Any, identity: bytes = FIRST, key: LinkPublicKey | None = PI) -> Any:
        buffers: tuple[Any, ...] = ()
        if samples:
            message, buffers = pack(self.bundle.bundle_id, samples)
        frames = tuple(map(bytes, encode(message, buffers)))
        sender = Sender(key=key, address="10.0.0.9") if key is not None else UNKNOWN_SENDER
        (answer,) = self.ingest.process(
            [Arrival(identity=identity, frames=frames, nbytes=sum(map(len, frames)), sender=sender)]
        )
        assert answer.identity == identity
        return answer.message

    def hello(self, device: str = "pi", *, outbox: str = "1") -> Hello:
        return Hello(
            protocol=PROTOCOL_VERSION, software="test", device=device, outbox=outbox * 32,
            bundle_id=self.bundle.bundle_id, self_test_error=0.0, waiting_samples=0,
        )  # fmt: skip

    def withdraw(self, name: str) -> None:
        (self.folder / f"{name}.pub").unlink()
        assert self.keys.refresh(now_s=10)


@pytest.fixture
def make_reception(tmp_path: Path, make_bundle: Any) -> Iterator[Any]:
    with Store.open(tmp_path / "store.sqlite", max_bytes=1 << 30) as store:
        yield lambda rate=None: Reception(tmp_path / "keys", make_bundle(), store, device_bytes_per_s=rate)


@pytest.fixture
def reception(make_reception: Any) -> Reception:
    made: Reception = make_reception()
    return made


def code_of(answer: Any) -> RefusalCode | None:
    return answer.code if isinstance(answer, Refusal) else None


def test_a_key_is_welcome_under_its_own_name_only(reception, make_sample) -> None:
    assert isinstance(reception.ask(reception.hello("pi")), Welcome)
    assert isinstance(reception.ask(Ping(), make_sample(0)), Ack)
    refused = reception.ask(reception.hello("phone", outbox="2"), identity=SECOND)
    assert (refused.code, refused.retry_after_s) == (RefusalCode.KEY_NAME, None)
    (line,) = reception.lines
    assert PI.key_id in line
    assert "10.0.0.9" in line
    assert "phone" in line


def test_who_is_refused_by_name_has_no_session(reception, make_sample) -> None:
    reception.ask(reception.hello("pi"))
    reception.ask(reception.hello("phone", outbox="2"))
    assert code_of(reception.ask(Ping(), make_sample(0))) is RefusalCode.HELLO_FIRST


@pytest.mark.parametrize("key", [PHONE, None])
def test_another_key_on_the_same_identity_is_another_connection(reception, make_sample, key) -> None:
    assert isinstance(reception.ask(reception.hello("pi")), Welcome)
    assert code_of(reception.ask(Ping(), make_sample(0), key=key)) is RefusalCode.HELLO_FIRST
    assert code_of(reception.ask(reception.hello("pi"), key=key)) in {RefusalCode.KEY_NAME, RefusalCode.NOT_AUTHORISED}


def test_an_outbox_of_another_device_is_refused_though_the_key_is_known(reception) -> None:
    assert isinstance(reception.ask(reception.hello("pi")), Welcome)
    answer = reception.ask(reception.hello("phone", outbox="1"), identity=SECOND, key=PHONE)
    assert code_of(answer) is RefusalCode.DEVICE_NAME


def test_a_withdrawn_key_ends_its_sessions_once_and_no_other(reception, make_sample) -> None:
    reception.ask(reception.hello("pi"))
    reception.ask(reception.hello("phone", outbox="2"), identity=SECOND, key=PHONE)
    assert reception.ingest.dismissals() == ([], set())
    reception.withdraw("pi")
    answers, keys = reception.ingest.dismissals()
    assert [(answer.identity, code_of(answer.message)) for answer in answers] == [(FIRST, RefusalCode.NOT_AUTHORISED)]
    assert keys == {PI}
    assert reception.ingest.dismissals() == ([], set())
    assert code_of(reception.ask(Ping(), make_sample(0))) is RefusalCode.HELLO_FIRST
    assert isinstance(reception.ask(Ping(), make_sample(0), identity=SECOND, key=PHONE), Ack)


def test_a_message_that_arrives_before_the_dismissal_is_refused_too(reception, make_sample) -> None:
    reception.ask(reception.hello("pi"))
    reception.withdraw("pi")
    refused = reception.ask(Ping(), make_sample(0))
    assert refused.code is RefusalCode.NOT_AUTHORISED
    assert refused.retry_after_s > 0


def test_the_name_of_a_connection_that_is_gone_is_free_at_once(reception) -> None:
    reception.ask(reception.hello("pi", outbox="1"))
    again = reception.hello("pi", outbox="2")
    assert code_of(reception.ask(again, identity=SECOND)) is RefusalCode.DEVICE_NAME
    reception.ingest.forget([FIRST, b"never-heard"])
    assert isinstance(reception.ask(again, identity=SECOND), Welcome)


def test_without_a_rate_the_credit_is_always_the_same(reception, make_sample) -> None:
    assert reception.ask(reception.hello()).credit_bytes == CREDIT_BYTES
    assert reception.ask(Ping(), make_sample(0)).credit_bytes == CREDIT_BYTES
    assert reception.ingest.grants() == []


def test_a_rate_takes_credit_away_and_a_grant_gives_it_back(make_reception, make_sample) -> None:
    reception = make_reception(1_000)
    welcome = reception.ask(reception.hello())
    samples = [make_sample(ordinal, tokens=16) for ordinal in range(256)]
    sent = sum(sample.nbytes for sample in samples)
    assert 0.75 * welcome.credit_bytes <= sent <= welcome.credit_bytes < CREDIT_BYTES
    assert reception.ask(Ping(), *samples).credit_bytes > 0
    ack = reception.ask(Ping(), make_sample(256))
    assert isinstance(ack, Ack)
    assert ack.credit_bytes == 0
    assert reception.ingest.grants() == []
    assert reception.ask(Ping()) == Pong()
    reception.now_s += 60
    (grant,) = reception.ingest.grants()
    assert isinstance(grant.message, Welcome)
    assert 0 < grant.message.credit_bytes < CREDIT_BYTES
    assert reception.ingest.grants() == []


def test_who_goes_on_without_credit_is_refused_until_it_has_paid(make_reception, make_sample) -> None:
    reception = make_reception(1_000)
    reception.ask(reception.hello())
    for first in (0, 200):  # the second batch begins with room and ends without
        assert isinstance(reception.ask(Ping(), *(make_sample(first + n, tokens=16) for n in range(200))), Ack)
    refused = reception.ask(Ping(), make_sample(300))
    assert refused.code is RefusalCode.OVER_CREDIT
    reception.now_s += refused.retry_after_s + 0.1
    assert isinstance(reception.ask(Ping(), make_sample(300)), Ack)


def test_the_rate_is_the_devices_own_whatever_connection_it_uses(make_reception, make_sample) -> None:
    reception = make_reception(1_000)
    reception.ask(reception.hello())
    reception.ask(Ping(), *(make_sample(n, tokens=16) for n in range(256)))
    reception.ask(Ping(), make_sample(256))
    assert reception.ask(reception.hello(), identity=SECOND).credit_bytes == 0
    phone = reception.ask(reception.hello("phone", outbox="2"), identity=b"third", key=PHONE)
    assert phone.credit_bytes > 0
