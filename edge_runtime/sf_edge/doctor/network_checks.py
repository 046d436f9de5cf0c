"""Checks of the way to the server: address, keys, name, TCP, handshake, and what the server says about this device."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sf_contract.errors import (
    MalformedMessage,
    NotAuthorised,
    RefusedByServer,
    ServerUnreachable,
    SplitFrozenError,
    WrongServerKey,
    one_line,
)
from sf_contract.link_keys import LinkPublicKey, public_key_from
from sf_contract.messages import Approval, Inquiry, Refusal, RefusalCode, Welcome
from sf_edge.doctor.findings import Concern, Found
from sf_edge.link.events import Endpoints, LinkEvent, describe, kind_of, remedy
from sf_edge.link.first_contact import FirstContact
from sf_edge.link.greeting import Greeting
from sf_edge.link.security import LinkChoice, check_address, check_link, host_and_port, is_this_machine
from sf_edge.session import refusal_cure

_NO_CONNECTION: Final = frozenset({None, LinkEvent.NO_LISTENER, LinkEvent.NO_ADDRESS})


@dataclass(frozen=True, slots=True)
class Host:
    """Where a `tcp://` address leads."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Network:
    """What is asked of the network; every call takes `timeout_s` at most, or raises OSError before."""

    resolve: Callable[[Host], list[str]]
    connect: Callable[[Host], None]
    ask_greeting: Callable[[Host], Greeting]
    timeout_s: float


def look_at_address(choice: LinkChoice) -> Found[Host | None]:
    """Whether the address can be one, and whether the link will be encrypted; no host for `ipc://`.

    Raises:
        UsageError: it is none.
    """
    check_address(choice.address)
    place = host_and_port(choice.address)
    host = None if place is None else Host(*place)
    if choice.server_key is not None:
        return Found(host, f"{choice.address}, encrypted")
    if is_this_machine(choice.address):
        return Found(host, f"{choice.address}, in the clear on this machine")
    if not choice.insecure:
        return Found(host, choice.address)
    concern = Concern("everybody between can read and change what is sent (--insecure)", "give --server-key instead")
    return Found(host, f"{choice.address}, in the clear", (concern,))


def look_at_server_key(choice: LinkChoice) -> Found[LinkPublicKey | None]:
    """The key that the server must have, and whether the options about keys agree; None for a link in the clear.

    Raises:
        UsageError: one is missing, too many, or no key.
    """
    check_link(choice)
    if choice.server_key is None:
        return Found(None, "none needed: the link goes in the clear")
    key = public_key_from(choice.server_key)
    return Found(key, f"key id {key.key_id}")


def look_at_name(host: Host, network: Network) -> Found[None]:
    """Whether the host has a network address.

    Raises:
        ServerUnreachable: it has none, or nobody can tell in time.
    """
    if _is_numeric(host.name):
        return Found(None, f"{host.name} is a network address")
    try:
        found = network.resolve(host)
    except TimeoutError as problem:
        raise ServerUnreachable(
            f"nobody told an address for {host.name} within {network.timeout_s:g} s",
            cure="check this machine's network and its name servers (/etc/resolv.conf)",
        ) from problem
    except OSError as problem:
        raise ServerUnreachable(
            f"{host.name} has no network address: {problem.strerror}",
            cure="correct the host name in --server, or connect this machine to the network",
        ) from problem
    return Found(None, f"{host.name} is {', '.join(found)}")


def look_at_tcp(host: Host, contact: FirstContact | None, network: Network) -> Found[None]:
    """Whether somebody accepts connections there. Tries by itself only where the contact, None without keys, did not show it.

    Raises:
        ServerUnreachable: nobody does.
    """
    if contact is None or (not contact.handshake_done and contact.trouble in _NO_CONNECTION):
        try:
            network.connect(host)
        except TimeoutError as problem:
            raise ServerUnreachable(
                f"{host} does not answer within {network.timeout_s:g} s",
                cure="check that the server is switched on and in reach, and what firewalls do with that port",
            ) from problem
        except OSError as problem:
            raise ServerUnreachable(f"{host}: {problem.strerror}", cure=_tcp_cure(problem)) from problem
    return Found(None, f"{host} accepts connections")


def look_at_handshake(
    contact: FirstContact, ends: Endpoints, host: Host | None, network: Network
) -> Found[FirstContact]:
    """Whether what accepts connections is the server that is meant, and knows this device.

    Raises:
        NotAuthorised, WrongServerKey, ServerUnreachable: saying why not.
    """
    if contact.handshake_done:
        proven = (
            "in the clear" if ends.key_id is None else f"encrypted; the server has proven its key {ends.server_key_id}"
        )
        return Found(contact, proven)
    if contact.trouble is None:
        raise ServerUnreachable(
            f"{ends.address} accepts connections but said nothing for {network.timeout_s:g} s",
            cure="correct host and port in --server, or see whether the server there hangs",
        )
    raise _handshake_failure(contact.trouble, ends, None if host is None else _greeting(contact.trouble, host, network))


def look_at_verdict(contact: FirstContact, inquiry: Inquiry, network: Network) -> Found[Approval | None]:
    """What the server says to the inquiry that the contact was made with.

    Raises:
        RefusedByServer, NotAuthorised, MalformedMessage: it says no.
        ServerUnreachable: it does not answer.
    """
    match contact.answer:
        case Approval(software=software) as approval:
            told = "" if inquiry.bundle_id else "; it was not asked about the bundle"
            return Found(approval, f"the server ({one_line(software)}) would let {inquiry.device} in{told}")
        case Refusal() as refusal:
            return _refused(refusal)
        case None | Welcome():
            raise ServerUnreachable(
                f"the server was reached, but did not answer within {network.timeout_s:g} s",
                cure="see the server's messages: its ingest process may hang, or its disk may be very slow",
            )


def resolve_within(host: Host, *, timeout_s: float) -> list[str]:
    """Addresses of a name. The system's own patience cannot be shortened, so the question is left behind after the time.

    Raises:
        OSError: it has none; TimeoutError: nobody answered in time.
    """
    found: list[str] = []
    problems: list[OSError] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host.name, host.port, type=socket.SOCK_STREAM)
        except OSError as problem:
            problems.append(problem)
        else:
            found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout_s)
    if problems:
        raise problems[0]
    if not found:
        raise TimeoutError
    return found


def connect_within(host: Host, *, timeout_s: float) -> None:
    """Make a TCP connection and drop it.

    Raises:
        OSError: none comes about.
    """
    socket.create_connection((host.name, host.port), timeout=timeout_s).close()


def _is_numeric(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _tcp_cure(problem: OSError) -> str:
    if isinstance(problem, ConnectionRefusedError):
        return "start the server, or correct the port in --server: nobody listens there"
    return "correct --server, and check this machine's network and firewalls"


def _greeting(trouble: LinkEvent, host: Host, network: Network) -> Greeting | None:
    """How the server introduces itself, where a failed handshake does not tell."""
    if trouble not in (LinkEvent.DROPPED, LinkEvent.OTHER_MECHANISM, LinkEvent.NOT_OURS):
        return None
    try:
        return network.ask_greeting(host)
    except OSError:
        return None


def _handshake_failure(trouble: LinkEvent, ends: Endpoints, greeting: Greeting | None) -> SplitFrozenError:
    match greeting:
        case Greeting.NOT_ZEROMQ:
            trouble = LinkEvent.NOT_OURS
        case Greeting.ENCRYPTED if ends.key_id is not None:
            return WrongServerKey(
                f"the server at {ends.address} has another key than {ends.server_key_id}",
                cure="give --server-key the key that sf-server train printed; if it is that one, correct --server",
            )
        case Greeting.ENCRYPTED:
            trouble = LinkEvent.OTHER_MECHANISM
        case Greeting.IN_THE_CLEAR if ends.key_id is not None:
            trouble = LinkEvent.OTHER_MECHANISM
        case Greeting.IN_THE_CLEAR | None:
            pass
    return kind_of(trouble, ends)(f"{ends.address}: {describe(trouble, ends)}", cure=remedy(trouble, ends))


def _refused(refusal: Refusal) -> Found[Approval | None]:
    said = f"the server would refuse this device ({refusal.code}): {one_line(refusal.detail)}"
    match refusal.code:
        case RefusalCode.NOT_AUTHORISED:
            raise NotAuthorised(
                said, cure="put this device's .pub file into the server's folder of authorized keys again"
            )
        case RefusalCode.MALFORMED | RefusalCode.HELLO_FIRST:
            raise MalformedMessage(said)
        case _ if refusal.retry_after_s is None:
            raise RefusedByServer(said, cure=refusal_cure(refusal.code))
        case _:
            concern = Concern(f"{said}; it would try again in {refusal.retry_after_s:.0f} s", _WAIT_CURE)
            return Found(None, "", (concern,))


_WAIT_CURE: Final = (
    "if that is this very device, run sf-edge doctor as its user and with its --outbox; else give each its own --device"
)
