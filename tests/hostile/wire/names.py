"""Being somebody else: other devices' names, outboxes and connections."""

from __future__ import annotations

from collections.abc import Iterator

from hostile.wire.attacks import Frames, on_server
from hostile.wire.peers import BUNDLE_ID, PHONE, Mallory, hello, sample
from sf_contract.limits import MIB
from sf_contract.messages import Finished, FinishNoted, Inquiry, Ping, Pong, RefusalCode, Stored, Welcome

OWN_OUTBOX = "f" * 32


@on_server(RefusalCode.DEVICE_NAME, has_greeted=False)
def a_greeting_with_the_name_of_a_device_that_is_there(mallory: Mallory) -> Iterator[Frames]:
    """Samples under the name of the phone would be counted, shown and deleted as the phone's."""
    yield mallory.says(hello(PHONE, outbox=OWN_OUTBOX))


@on_server(RefusalCode.DEVICE_NAME, has_greeted=False)
def the_outbox_of_another_device(mallory: Mallory) -> Iterator[Frames]:
    """Whoever knows the phone's outbox could take its next ordinals, and the phone's own samples would be called stored
    already. An outbox stays with the device that used it first."""
    yield mallory.says(hello("mallory", outbox=hello(PHONE).outbox))


@on_server(RefusalCode.KEY_NAME, has_greeted=False, has_key=True)
def name_and_outbox_of_another_device(mallory: Mallory) -> Iterator[Frames]:
    """With both, in the clear, the attacker is the phone. On an encrypted link the key decides which name it may use."""
    yield mallory.says(hello(PHONE))
    yield mallory.says(hello(PHONE, outbox=OWN_OUTBOX))


@on_server(Stored, has_key=True)
def an_honest_device_with_a_key(mallory: Mallory) -> Iterator[Frames]:
    """No attack: the key that was refused above is good for its own name."""
    yield mallory.sends(sample(0))


@on_server(RefusalCode.HELLO_FIRST, has_greeted=False, has_key=True)
def work_on_an_encrypted_connection_without_a_greeting(mallory: Mallory) -> Iterator[Frames]:
    """A key alone is no session."""
    yield mallory.sends(sample(0))


@on_server(RefusalCode.BUNDLE, has_greeted=False)
def a_greeting_with_a_bundle_that_is_not_trained_on(mallory: Mallory) -> Iterator[Frames]:
    """Rows of another front end."""
    yield mallory.says(hello("mallory", bundle_id="cd" * 32))


@on_server(RefusalCode.SELF_TEST, has_greeted=False)
def a_front_end_that_computes_something_else(mallory: Mallory) -> Iterator[Frames]:
    """A broken processor, or somebody who changed the graph and forgot to lie about the self-test."""
    yield mallory.says(hello("mallory", self_test_error=0.5))
    yield mallory.says(hello("mallory", self_test_error=1e6))


@on_server(RefusalCode.PROTOCOL, has_greeted=False)
def a_greeting_of_another_version(mallory: Mallory) -> Iterator[Frames]:
    """The frame says version 1 and the greeting something else."""
    for protocol in (0, 2, -1, 2**62):
        yield mallory.says(hello("mallory", protocol=protocol))


@on_server(FinishNoted)
def the_end_of_somebody_else(mallory: Mallory) -> Iterator[Frames]:
    """`Finished` names no device: it ends the session it comes in, whatever numbers it holds. The phone goes on."""
    yield mallory.says(Finished(samples=2**53 - 1, rejected=2**53 - 1, skipped_rows=2**53 - 1))


@on_server(Pong, is_prepared=True)
def a_greeting_in_the_middle_of_a_session(mallory: Mallory) -> Iterator[Frames]:
    """Greeting again and again must not add up: a connection has one session, and each greeting replaces it."""
    for number in range(100):
        yield mallory.says(hello("mallory", waiting_samples=number))
    yield mallory.says(hello(PHONE, outbox=OWN_OUTBOX))  # refused, and changes nothing
    yield mallory.says(Ping())


@on_server(Welcome, has_greeted=False, memory_bytes=4 * MIB)
def an_outbox_for_every_greeting(mallory: Mallory) -> Iterator[Frames]:
    """Every new outbox is a small row in the store, which counts against the store's quota; nothing else grows."""
    for number in range(100):
        yield mallory.says(hello("mallory", outbox=f"{number:032x}"))


@on_server(RefusalCode.HELLO_FIRST, is_prepared=True, has_greeted=False)
def an_inquiry_instead_of_a_greeting(mallory: Mallory) -> Iterator[Frames]:
    """An inquiry is judged like a greeting and keeps nothing: whoever asked may still not send, and no outbox is taken."""
    asked = Inquiry(protocol=1, software="x", device="mallory", outbox=OWN_OUTBOX, bundle_id=BUNDLE_ID)
    for _ in range(100):
        yield mallory.says(asked)
    yield mallory.sends(sample(0))
