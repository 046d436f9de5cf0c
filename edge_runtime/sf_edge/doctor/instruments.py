"""What the checks get from the machine: clock, disk, sensors, front end, network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sf_contract.bundle import Bundle
from sf_contract.command import say
from sf_contract.front_end import open_front_end, run_self_test
from sf_contract.messages import Inquiry
from sf_contract.tokenizer import open_tokenizer
from sf_edge.bench.tuning_files import default_tuning_folder
from sf_edge.bundles.choice import remembered_choice, this_place
from sf_edge.doctor.device_checks import DiskSpace, disk_space
from sf_edge.doctor.local_checks import ComputeError, Remember
from sf_edge.doctor.network_checks import Network, connect_within, resolve_within
from sf_edge.governor.probe import Probe, SystemProbe
from sf_edge.link.dealer import Link
from sf_edge.link.first_contact import FirstContact, make_contact
from sf_edge.link.greeting import ask_greeting
from sf_edge.link.security import LinkKeys
from sf_edge.settings import DoctorSettings

Ask = Callable[[str, LinkKeys | None, Inquiry], FirstContact]
"""Asks the server at an address; encrypted with the keys, in the clear without."""


@dataclass(frozen=True, slots=True)
class Instruments:
    """Where the checks look; `wall_s` is in seconds since 1970."""

    wall_s: Callable[[], float]
    space_of: Callable[[Path], DiskSpace]
    probe: Probe
    remember: Remember
    compute_error: ComputeError
    network: Network
    ask: Ask


def system_instruments(settings: DoctorSettings) -> Instruments:
    """This machine's."""
    timeout_s = settings.timeout_s
    return Instruments(
        wall_s=time.time,
        space_of=disk_space,
        probe=SystemProbe(),
        remember=lambda accepted: remembered_choice(accepted, place=this_place(default_tuning_folder()), say=say),
        compute_error=lambda bundle: _compute_error(bundle, threads=settings.threads or 1),
        network=Network(
            resolve=lambda host: resolve_within(host, timeout_s=timeout_s),
            connect=lambda host: connect_within(host, timeout_s=timeout_s),
            ask_greeting=lambda host: ask_greeting(host.name, host.port, timeout_s=timeout_s),
            timeout_s=timeout_s,
        ),
        ask=lambda address, keys, inquiry: _ask(address, keys, inquiry, timeout_s=timeout_s),
    )


def _ask(address: str, keys: LinkKeys | None, inquiry: Inquiry, *, timeout_s: float) -> FirstContact:
    with Link(address, keys) as link:
        return make_contact(link, inquiry, timeout_s=timeout_s, now_s=time.monotonic)


def _compute_error(bundle: Bundle, *, threads: int) -> float:
    open_tokenizer(bundle)
    return run_self_test(bundle, open_front_end(bundle, threads=threads))
