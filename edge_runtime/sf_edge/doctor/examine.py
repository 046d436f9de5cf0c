"""The order of the checks, and which of them need which. None leaves anything behind, here or at the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sf_contract import SOFTWARE
from sf_contract.bundle import Bundle
from sf_contract.command import print_json
from sf_contract.messages import PROTOCOL_VERSION, Inquiry
from sf_edge.doctor.device_checks import look_at_clock, look_at_disk, look_at_governor, look_at_outbox
from sf_edge.doctor.findings import Check, Examination, Finding
from sf_edge.doctor.instruments import Instruments, system_instruments
from sf_edge.doctor.local_checks import (
    look_at_bundle,
    look_at_data,
    look_at_self_test,
    look_at_settings,
    look_at_signature,
)
from sf_edge.doctor.report import conclusion_text, finding_text, report_json
from sf_edge.doctor.visit import VISIT_CHECKS, Visit
from sf_edge.governor.placement import parse_cpus
from sf_edge.link.security import LinkChoice
from sf_edge.outbox.records import OutboxStatus
from sf_edge.settings import DoctorSettings
from sf_edge.sources.opening import DataChoice


def run_doctor(settings: DoctorSettings) -> int:
    """Examine and print; the exit code: that of the first failure, 0 without one."""
    found = examine(settings, system_instruments(settings), _keep_quiet if settings.json else _print)
    if settings.json:
        print_json(report_json(found.findings.values(), exit_code=found.exit_code))
    else:
        print(conclusion_text(found.findings.values(), exit_code=found.exit_code))
    return found.exit_code


def examine(settings: DoctorSettings, instruments: Instruments, tell: Callable[[Finding], None]) -> Examination:
    """Carry out all checks.

    Args:
        tell: takes every finding as soon as there is one.
    """
    examination = Examination(tell)
    examination.look(Check.SETTINGS, lambda: look_at_settings(settings, parse_cpus))
    bundle = _look_at_bundle(examination, settings, instruments)
    error = examination.look_at(
        Check.SELF_TEST,
        bundle,
        lambda bundle: look_at_self_test(bundle, instruments.compute_error),
        needs=[Check.BUNDLE],
    )
    _look_at_data(examination, settings, bundle)
    status = examination.look(Check.OUTBOX, lambda: look_at_outbox(settings, bundle))
    examination.look(Check.DISK, lambda: look_at_disk(settings, status, space_of=instruments.space_of))
    _look_at_governor(examination, settings, instruments)
    inquiry = _inquiry(settings, bundle=bundle, error=error, status=status)
    server_s = _visit_server(examination, settings, instruments, inquiry)
    examination.look(Check.CLOCK, lambda: look_at_clock(instruments.wall_s(), bundle=bundle, server_s=server_s))
    return examination


def _look_at_bundle(examination: Examination, settings: DoctorSettings, instruments: Instruments) -> Bundle | None:
    bundle = None
    if settings.bundle is None:
        examination.skip(Check.BUNDLE, "--bundle is not given")
    else:
        folder = Path(settings.bundle).expanduser()
        bundle = examination.look(
            Check.BUNDLE, lambda: look_at_bundle(folder, settings.trust, remember=instruments.remember)
        )
    examination.look_at(
        Check.SIGNATURE, bundle, lambda bundle: look_at_signature(bundle, settings.trust), needs=[Check.BUNDLE]
    )
    return bundle


def _look_at_data(examination: Examination, settings: DoctorSettings, bundle: Bundle | None) -> None:
    if settings.data is None:
        examination.skip(Check.DATA, "--data is not given")
        return
    choice = DataChoice(data=settings.data, record_format=settings.format, watch=settings.watch)
    examination.look(Check.DATA, lambda: look_at_data(choice, settings, bundle))


def _look_at_governor(examination: Examination, settings: DoctorSettings, instruments: Instruments) -> None:
    if settings.no_governor:
        examination.skip(Check.GOVERNOR, "--no-governor is given")
        return
    examination.look(Check.GOVERNOR, lambda: look_at_governor(settings, instruments.probe.read()))


def _visit_server(
    examination: Examination, settings: DoctorSettings, instruments: Instruments, inquiry: Inquiry
) -> float | None:
    """The server's time, if it told it."""
    if settings.server is None:
        for check in VISIT_CHECKS:
            examination.skip(check, "--server is not given")
        return None
    choice = LinkChoice(
        address=settings.server, key=settings.key, server_key=settings.server_key, insecure=settings.insecure
    )
    return Visit(examination, instruments, choice).server_clock_s(inquiry)


def _inquiry(
    settings: DoctorSettings, *, bundle: Bundle | None, error: float | None, status: OutboxStatus | None
) -> Inquiry:
    """What a Hello would say, as far as it is known."""
    return Inquiry(
        protocol=PROTOCOL_VERSION,
        software=SOFTWARE,
        device=settings.device,
        outbox=None if status is None else status.outbox_id,
        bundle_id=None if bundle is None else bundle.bundle_id,
        self_test_error=error,
    )


def _print(finding: Finding) -> None:
    print(finding_text(finding), flush=True)


def _keep_quiet(finding: Finding) -> None:
    """All is printed at the end."""
