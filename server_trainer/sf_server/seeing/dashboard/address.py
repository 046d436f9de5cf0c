"""Where the dashboard may listen, and which names a browser may call it by. Pure but for opening the socket."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

from sf_contract.errors import AddressInUse, UsageError

LOCALHOST: Final = "localhost"
BACKLOG: Final = 64
OFF: Final = "off"
DASHBOARD_OPTION: Final = "--dashboard"
METRICS_OPTION: Final = "--metrics-address"
_ADDRESS: Final = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]{2,45})\]|(?P<host>[A-Za-z0-9.-]{1,253})):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A host (IP address or name, without brackets) and a port; port 0 takes any that is free."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True where only programs on this machine can connect."""
        return self.host == LOCALHOST or (is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback)

    @property
    def url(self) -> str:
        """For a browser."""
        return f"http://{_bracketed(self.host)}:{self.port}/"

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class WebAddresses:
    """Where a run is to be seen; None where nobody asked for it."""

    dashboard: WebAddress | None
    metrics: WebAddress | None

    @property
    def any(self) -> bool:
        """True when there is something to serve."""
        return self.dashboard is not None or self.metrics is not None

    def check_free(self) -> None:
        """Look whether nobody else listens there, for a person who is still watching.

        Raises:
            AddressInUse, UsageError: as `open_socket` does.
        """
        for option, address in ((DASHBOARD_OPTION, self.dashboard), (METRICS_OPTION, self.metrics)):
            if address is not None:
                open_socket(address, option=option).close()


def web_addresses(*, dashboard: str | None, metrics: str | None, without_login: bool) -> WebAddresses:
    """The addresses of `--dashboard` and `--metrics-address`; None and `off` mean none.

    Raises:
        UsageError: one of them is none, or can be reached from other machines and nobody allowed that; or both are the same.
    """
    page, numbers = (
        None if text in {None, OFF} else web_address(str(text), option=option, without_login=without_login)
        for text, option in ((dashboard, DASHBOARD_OPTION), (metrics, METRICS_OPTION))
    )
    if page is not None and numbers is not None and page.port == numbers.port != 0:
        raise UsageError(
            f"{DASHBOARD_OPTION} and {METRICS_OPTION} have the same port {page.port}",
            cure=f"give two ports, or leave {METRICS_OPTION} out: the dashboard serves /metrics too",
        )
    return WebAddresses(dashboard=page, metrics=numbers)


def web_address(text: str, *, option: str, without_login: bool) -> WebAddress:
    """An address from `HOST:PORT`.

    Args:
        option: what it was given with, for the messages.
        without_login: addresses that other machines can reach are allowed.

    Raises:
        UsageError: it is none, or other machines could reach it and nobody allowed that.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65_535 or (match["v6"] and not is_ip(match["v6"])):
        raise UsageError(f"{option} {text} is no address", cure="give HOST:PORT, like 127.0.0.1:8765 or [::1]:8765")
    address = WebAddress(host=(match["v6"] or match["host"]).lower(), port=int(match["port"]))
    if not address.is_loopback and not without_login:
        raise UsageError(
            f"{option} {text} can be reached from other machines, and the dashboard has no login",
            cure="listen on 127.0.0.1 and reach it through a tunnel (ssh -L 8765:127.0.0.1:8765 SERVER), "
            "or allow it with --open-without-login",
        )
    return address


def is_ip(text: str) -> bool:
    """True for an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def may_be_called(host_header: str, address: WebAddress) -> bool:
    """May a request with this `Host` header be answered?

    A page on the internet can make its own name point to this machine and then read whatever answers (DNS rebinding). So
    only names that nobody else controls count: loopback ones, the one that was given to listen on, and, where other
    machines may connect, IP addresses. The port is not looked at: a tunnel changes it.
    """
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?", host_header)
    if match is None:
        return False
    name = (match[1] or match[2]).lower()
    called = WebAddress(host=name, port=0)
    return called.is_loopback or name == address.host or (not address.is_loopback and is_ip(name))


def open_socket(address: WebAddress, *, option: str) -> socket.socket:
    """A listening socket.

    Raises:
        AddressInUse: another program listens there.
        UsageError: this machine has no such address, or its port is not for everybody.
    """
    try:
        host = "127.0.0.1" if address.host == LOCALHOST else address.host
        family, *_, where = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)[0]
        return _listening(family, where)
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{option} {address}: another program listens there",
                cure=f"stop it, or give another port with {option}, 0 for any that is free",
            ) from problem
        raise UsageError(
            f"{option} {address} cannot be listened on: {problem.strerror or problem}",
            cure="give an address of this machine and a port above 1023",
        ) from problem


def bound_address(listening: socket.socket, address: WebAddress) -> WebAddress:
    """The address with the port that the socket really has."""
    return WebAddress(host=address.host, port=int(listening.getsockname()[1]))


def _listening(family: int, where: object) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)  # type: ignore[arg-type]  # as getaddrinfo gave it
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
