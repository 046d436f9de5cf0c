"""The stages of the demo: each runs one of the real commands, or starts it in the background."""

from __future__ import annotations

import socket

import commands
from commands import Plan
from monitor import WatchedDevice
from out_folder import ExportRecord, has_bundle_of, note_export, remove_bundle
from processes import ONE_THREAD, Child, Crew
from reports import IngestRecord, report_or

from sf_contract.command import say


def export(crew: Crew, plan: Plan, *, keep: bool) -> None:
    """Make the bundle, unless a former demo made the same one and it may be kept."""
    record = ExportRecord(
        model=plan.model, split_layer=plan.split_layer, max_tokens=plan.max_tokens, labels=plan.labels
    )
    if keep and has_bundle_of(plan.out, record):
        say(f"keeping {plan.out.bundle}, exported from the same model and labels")
        return
    remove_bundle(plan.out)
    for line in crew.run("export", commands.export_command(plan)).splitlines():
        say(f"  {line}")
    note_export(plan.out, record)


def start_server(crew: Crew, plan: Plan) -> tuple[Child, str]:
    """Start the server; returns it and its address once it receives devices."""
    server = crew.start("server", commands.server_command(plan, bind=f"tcp://127.0.0.1:{free_port()}"))
    crew.wait_until(plan.out.ingest.is_file)
    address = report_or(plan.out.ingest.read_bytes(), IngestRecord()).address
    say(f"receiving devices at {address}")
    return server, address


def start_device(crew: Crew, plan: Plan, name: str, labels: list[str], *, server: str) -> WatchedDevice:
    """Start one device; it ends by itself when everything it holds is acknowledged."""
    child = crew.start(name, commands.edge_command(plan, name, server=server), environment=ONE_THREAD)
    return WatchedDevice(name=name, labels=tuple(labels), child=child)


def evaluate(crew: Crew, plan: Plan) -> str:
    """The report of `sf-server eval`."""
    return crew.run("eval", commands.eval_command(plan))


def free_port() -> int:
    """A TCP port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
