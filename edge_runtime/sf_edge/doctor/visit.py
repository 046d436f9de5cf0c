"""The checks of the way to a server, which is asked once: address, keys, name, TCP, handshake, verdict."""

from __future__ import annotations

from typing import Final

from sf_contract.messages import Inquiry
from sf_edge.doctor.device_checks import look_at_key
from sf_edge.doctor.findings import Check, Examination
from sf_edge.doctor.instruments import Instruments
from sf_edge.doctor.network_checks import (
    Host,
    look_at_address,
    look_at_handshake,
    look_at_name,
    look_at_server_key,
    look_at_tcp,
    look_at_verdict,
)
from sf_edge.link.events import Endpoints
from sf_edge.link.first_contact import FirstContact
from sf_edge.link.security import LinkChoice, LinkKeys

VISIT_CHECKS: Final = (
    Check.ADDRESS, Check.KEY, Check.SERVER_KEY, Check.NAME, Check.TCP, Check.HANDSHAKE, Check.VERDICT,
)  # fmt: skip


class Visit:
    """A visit to one server.

    Args:
        examination: keeps the findings.
        choice: address and keys as they were given.
    """

    def __init__(self, examination: Examination, instruments: Instruments, choice: LinkChoice) -> None:
        self._examination = examination
        self._instruments = instruments
        self._network = instruments.network
        self._choice = choice

    def server_clock_s(self, inquiry: Inquiry) -> float | None:
        """Carry out the checks; the server's time in seconds since 1970 if it told it."""
        host = self._examination.look(Check.ADDRESS, lambda: look_at_address(self._choice))
        keys = self._keys()
        contact = self._contact(self._look_at_name(host), keys, inquiry)
        reach = self._look_at_tcp(host, contact)
        ends, network = _ends(self._choice.address, keys), self._network
        done = self._examination.look_at(
            Check.HANDSHAKE,
            contact,
            lambda contact: look_at_handshake(contact, ends, host, network),
            needs=[reach, *self._key_checks()],
        )
        approval = self._examination.look_at(
            Check.VERDICT, done, lambda done: look_at_verdict(done, inquiry, network), needs=[Check.HANDSHAKE]
        )
        return None if approval is None else approval.clock_s

    def _keys(self) -> LinkKeys | None:
        """The keys for an encrypted link, if all is well with them."""
        choice = self._choice
        secret = None
        if choice.key is None and choice.server_key is None:
            self._examination.skip(Check.KEY, "neither --key nor --server-key is given")
        else:
            secret = self._examination.look(Check.KEY, lambda: look_at_key(choice))
        server = self._examination.look(Check.SERVER_KEY, lambda: look_at_server_key(choice), needs=[Check.ADDRESS])
        return None if secret is None or server is None else LinkKeys(secret=secret, server=server)

    def _key_checks(self) -> list[Check]:
        """The checks without which there is no handshake."""
        return [Check.SERVER_KEY] if self._choice.server_key is None else [Check.KEY, Check.SERVER_KEY]

    def _look_at_name(self, host: Host | None) -> Check:
        """The check that has to pass before there is something to connect to."""
        if self._is_local(host):
            self._examination.skip(Check.NAME, "ipc:// has none")
            return Check.ADDRESS
        self._examination.look_at(
            Check.NAME, host, lambda host: look_at_name(host, self._network), needs=[Check.ADDRESS]
        )
        return Check.NAME

    def _look_at_tcp(self, host: Host | None, contact: FirstContact | None) -> Check:
        """The check that has to pass before there can be a handshake."""
        if self._is_local(host):
            self._examination.skip(Check.TCP, "ipc:// goes without")
            return Check.ADDRESS
        self._examination.look_at(
            Check.TCP, host, lambda host: look_at_tcp(host, contact, self._network), needs=[Check.NAME]
        )
        return Check.TCP

    def _is_local(self, host: Host | None) -> bool:
        return host is None and self._examination.has_passed(Check.ADDRESS)

    def _contact(self, reach: Check, keys: LinkKeys | None, inquiry: Inquiry) -> FirstContact | None:
        """What came of asking the server; None where that makes no sense."""
        if not all(map(self._examination.has_passed, [reach, *self._key_checks()])):
            return None
        return self._instruments.ask(self._choice.address, keys, inquiry)


def _ends(address: str, keys: LinkKeys | None) -> Endpoints:
    if keys is None:
        return Endpoints(address=address)
    return Endpoints(address=address, key_id=keys.secret.public.key_id, server_key_id=keys.server.key_id)
