from __future__ import annotations

import msgspec
import pytest
from labelled import LabelledText
from summary import (
    Accuracy,
    BundleResult,
    DeviceResult,
    Phase,
    ServerResult,
    Summary,
    each_sample_once,
    majority_share,
    summary_text,
)


def device(name: str, *, uploads: int | None = 300, repeated_uploads: int = 0) -> DeviceResult:
    return DeviceResult(
        name=name,
        labels=("navigate", "start_timer"),
        rows=300,
        forward_passes=300,
        uploads=uploads,
        repeated_uploads=repeated_uploads,
        bytes_up=2_345_678,
        bytes_down=7_890,
        cpu_s=4.25,
    )


@pytest.fixture
def summary() -> Summary:
    return Summary(
        model="models/SmolLM2.gguf",
        split_layer=4,
        accuracy=Accuracy(rows=320, templates_unseen=True, bundle=0.959375, fp32=0.9625, majority_class=0.125),
        devices=(device("phone-1"), device("phone-2")),
        server=ServerResult(epochs=3, samples_stored=600, repeats=0, samples_held_out=60, samples_trained=1620),
        bundle=BundleResult(nbytes=41_500_000, mean_error=0.0213, p99_error=0.05),
        phases=(Phase(name="export", seconds=60.2), Phase(name="evaluate", seconds=9.9)),
        run="out/run",
    )


def test_the_text_says_accuracy_accounts_costs_and_what_to_try_next(summary: Summary) -> None:
    assert summary_text(summary) == (
        "Accuracy on 320 sentences of templates never trained on:\n"
        "   95.9%  with the devices' quantized front end\n"
        "   96.2%  with the fp32 front end\n"
        "   12.5%  by always answering with the most frequent label\n"
        "\n"
        "device   holds only             rows  forward passes  uploads      up    down    CPU\n"
        "phone-1  navigate, start_timer   300             300      300  2.3 MB  7.9 kB  4.2 s\n"
        "phone-2  navigate, start_timer   300             300      300  2.3 MB  7.9 kB  4.2 s\n"
        "\n"
        "Each sample was computed once, uploaded once and trained 3 times:\n"
        "  devices: 600 forward passes, 600 uploads, 0 repeated\n"
        "  server:  600 samples stored, 0 repeats received\n"
        "  server:  540 samples x 3 epochs = 1,620 trained; 60 held out for validation\n"
        "\n"
        "Bundle: 41.5 MB, layers 0-3 of SmolLM2.gguf; activations differ from fp32 by 2.1% on average (99 % of tokens: "
        "below 5.0%)\n"
        "Time: export 60 s, evaluate 10 s; together 70 s\n"
        "\n"
        "Try next:\n"
        '  sf-server predict --run out/run "wake me up at six tomorrow"\n'
        "  sf-server merge --run out/run --out out/merged"
    )


def test_counters_that_do_not_add_up_are_said_so(summary: Summary) -> None:
    repeated = msgspec.structs.replace(summary, devices=(device("phone-1"), device("phone-2", repeated_uploads=1)))
    too_few = msgspec.structs.replace(summary, server=msgspec.structs.replace(summary.server, samples_trained=1619))
    unknown = msgspec.structs.replace(summary, devices=(device("phone-1", uploads=None), device("phone-2")))
    assert each_sample_once(summary)
    for doubtful in (repeated, too_few, unknown):
        assert not each_sample_once(doubtful)
        assert "The counters do not show" in summary_text(doubtful)


def test_counters_nobody_reported_are_shown_as_dashes(summary: Summary) -> None:
    server = ServerResult(epochs=3, samples_stored=None, repeats=None, samples_held_out=None, samples_trained=None)
    assert "server:  - samples stored, - repeats received" in summary_text(
        msgspec.structs.replace(summary, server=server)
    )


def test_own_data_is_not_called_unseen_templates(summary: Summary) -> None:
    accuracy = msgspec.structs.replace(summary.accuracy, templates_unseen=False)
    assert "320 rows kept aside" in summary_text(msgspec.structs.replace(summary, accuracy=accuracy))


def test_the_majority_share_is_what_one_constant_answer_reaches() -> None:
    assert majority_share([LabelledText("t", label) for label in "aabc"]) == 0.5


def test_the_summary_survives_its_json(summary: Summary) -> None:
    assert msgspec.json.decode(msgspec.json.encode(summary), type=Summary) == summary
