"""Every attack is answered as argued, within bounded memory, and no other device notices."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from hostile.wire import headers, names, samples, to_device
from hostile.wire.attacks import ATTACKS, DEVICE_ATTACKS, Attack, Expected
from hostile.wire.peers import BUNDLE_ID, MALLORY, PHONE, Mallory, Server, hello, sample
from sf_contract.activations import pack
from sf_contract.codec import WireCodec
from sf_contract.errors import MAX_SHOWN
from sf_contract.frames import decode, encode
from sf_contract.limits import MIB
from sf_contract.messages import Ack, AlreadyStored, AnyMessage, Refusal, Rejected, RejectionCode, Stored, Welcome
from sf_edge.outbox.queue import Outbox
from sf_edge.outbox.records import Owner
from sf_edge.session import Session, Terms
from sf_edge.sources import SourcePosition
from support.tiny_bundle import HIDDEN

MOST_LINES = 3


def kind_of(answer: AnyMessage) -> Expected:
    """What an attack expects: the code of a refusal, the verdict on the last sample, or the message itself."""
    if isinstance(answer, Refusal):
        return answer.code
    if isinstance(answer, Ack):
        last = answer.verdicts[-1]
        return last.code if isinstance(last, Rejected) else type(last)
    return type(answer)


def test_every_module_of_attacks_is_used() -> None:
    assert {attack.assault.__module__ for attack in ATTACKS} == {m.__name__ for m in (headers, names, samples)}
    assert {attack.__module__ for attack in DEVICE_ATTACKS} == {to_device.__name__}
    everyone = [attack.name for attack in ATTACKS] + [attack.__name__ for attack in DEVICE_ATTACKS]
    assert len(set(everyone)) == len(everyone) > 60


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_on_the_server_fails(attack: Attack, make_server: Callable[[bool], Server]) -> None:
    server = make_server(attack.has_key)
    mallory = Mallory()
    if attack.has_greeted:
        assert isinstance(server.ask(MALLORY, encode(hello(MALLORY)), identity=mallory.identity), Welcome)
    before = server.contents(PHONE)
    lines_before = len(server.lines)
    answers: list[AnyMessage] = []
    most_bytes = 0
    for frames in attack.assault(mallory):
        arrival = server.arrival(MALLORY, frames, identity=mallory.identity)
        tracemalloc.start()
        (answer,) = server.ingest.process([arrival])
        most_bytes = max(most_bytes, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        answers.append(answer.message)
        assert answer.identity == mallory.identity
        encode(answer.message)
    expected = Ack if attack.answer is Ack else attack.answer
    judged = answers[-1:] if attack.is_prepared else answers
    found = [type(answer) if expected is Ack else kind_of(answer) for answer in judged]
    assert found == [expected] * len(judged), answers[-1]
    assert most_bytes < attack.memory_bytes
    assert server.contents(PHONE) == before
    said = server.lines[lines_before:]
    assert len(said) <= MOST_LINES
    assert all(line.isprintable() and len(line) < 2 * MAX_SHOWN for line in said)
    assert isinstance(server.ask(PHONE, encode(*pack(BUNDLE_ID, [sample(1)]))), Ack), "the phone was sent away"


@pytest.mark.parametrize("attack", DEVICE_ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_on_a_device_fails(attack: Callable[[Session], None]) -> None:
    terms = Terms(hello=hello("phone"), address="tcp://server:1", give_up_after_s=0)
    attack(Session(terms, random=lambda: 0.5, now_s=0.0))


def test_what_is_remembered_of_an_attacker_does_not_grow(make_server: Callable[[bool], Server]) -> None:
    """Thousands of messages of every malformed kind, and then the memory that stays."""
    server = make_server(False)
    mallory = Mallory()
    kinds = [next(iter(attack.assault(mallory))) for attack in ATTACKS if attack.assault.__module__ == headers.__name__]
    kinds = [frames for frames in kinds if sum(map(len, frames)) < 10_000]
    for frames in kinds:
        server.ask(MALLORY, frames, identity=mallory.identity)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(3_000):
        server.ask(MALLORY, kinds[number % len(kinds)], identity=mallory.identity)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 64 * 1024


def test_everything_the_attackers_send_together_is_answered_in_its_order(
    make_server: Callable[[bool], Server],
) -> None:
    """All attacks in one group, between two batches of an honest device: nothing of it disturbs the transaction."""
    server = make_server(False)
    mallory = Mallory()
    chosen = [attack for attack in ATTACKS if not attack.has_key and attack.name != "many_malformed_messages"]
    assaults = [frames for attack in chosen for frames in attack.assault(mallory)]
    arrivals = [server.arrival(MALLORY, frames, identity=mallory.identity) for frames in assaults]
    first, last = (server.arrival(PHONE, encode(*pack(BUNDLE_ID, [sample(n)]))) for n in (1, 2))
    answers = server.ingest.process([first, *arrivals, last])
    assert len(answers) == len(arrivals) + 2
    for answer, ordinal in ((answers[0], 1), (answers[-1], 2)):
        assert isinstance(answer.message, Ack)
        assert answer.message.verdicts == (Stored(ordinal),)


def test_answers_to_attackers_are_messages_that_a_device_can_read(make_server: Callable[[bool], Server]) -> None:
    server = make_server(False)
    for attack in ATTACKS:
        answer = server.ask(MALLORY, next(iter(attack.assault(Mallory()))), identity=b"m")
        assert decode([bytes(frame) for frame in encode(answer)]).message == answer


def test_verdicts_on_samples_that_were_never_sent_do_not_empty_an_outbox(tmp_path: Path) -> None:
    """A server that calls everything stored, whatever it was sent, would make the device throw its private data away."""
    owner = Owner(bundle_id=BUNDLE_ID, device=PHONE, codec=WireCodec.INT8, hidden=HIDDEN)
    with Outbox(tmp_path, owner=owner, max_bytes=1 * MIB) as outbox:
        for ordinal in range(4):
            outbox.append(sample(ordinal), SourcePosition(line=ordinal + 1, source="rows.jsonl"))
        outbox.commit()
        outbox.mark_sent([0, 1])
        everything = (*map(Stored, range(1, 10)), Rejected(3, RejectionCode.LABEL, "no"), AlreadyStored(2**53 - 1))
        assert outbox.settle(everything) == 1
        assert [offer.ordinal for offer in outbox.offers(after=-1, limit=10)] == [0, 2, 3]
        assert outbox.counters.acknowledged == 1
