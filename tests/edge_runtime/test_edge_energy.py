"""Energy and throttling from trees that look like `/sys` of different machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from sf_edge.bench.energy import CounterMeter, NoMeter, PowerMeter, find_meter
from sf_edge.bench.throttling import judge, look_at
from sf_edge.governor.kernel_files import read_line


class Watch:
    """A clock that is set by hand, in seconds."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s


def put(root: Path, path: str, text: object) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")
    return file


@pytest.fixture
def watch() -> Watch:
    return Watch()


def rapl(root: Path, zone: str, name: str, energy_uj: int, *, range_uj: int = 1_000_000) -> Path:
    put(root, f"sys/class/powercap/{zone}/name", name)
    put(root, f"sys/class/powercap/{zone}/max_energy_range_uj", range_uj)
    return put(root, f"sys/class/powercap/{zone}/energy_uj", energy_uj)


def battery(root: Path, **values: object) -> None:
    for name, value in {"type": "Battery", **values}.items():
        put(root, f"sys/class/power_supply/BAT0/{name}", value)


def test_processor_packages_are_added_and_their_parts_are_not(tmp_path, watch) -> None:
    first = rapl(tmp_path, "intel-rapl:0", "package-0", 100)
    second = rapl(tmp_path, "intel-rapl:1", "package-1", 200)
    core = rapl(tmp_path, "intel-rapl:0:0", "core", 10)
    platform = rapl(tmp_path, "intel-rapl:2", "psys", 20)
    meter = find_meter(tmp_path, now_s=watch.now_s)
    assert isinstance(meter, CounterMeter)
    before = meter.mark()
    for file in (first, second, core, platform):
        file.write_text("500200")
    assert meter.joules(before, meter.mark()) == pytest.approx((500_100 + 500_000) / 1e6)


def test_a_counter_that_starts_again_at_zero_is_understood(tmp_path, watch) -> None:
    counter = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000)
    meter = find_meter(tmp_path, now_s=watch.now_s)
    before = meter.mark()
    counter.write_text("100000")
    assert meter.joules(before, meter.mark()) == pytest.approx(0.2)


def test_a_counter_that_disappears_gives_no_number_instead_of_a_wrong_one(tmp_path, watch) -> None:
    counter = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000)
    meter = find_meter(tmp_path, now_s=watch.now_s)
    before = meter.mark()
    counter.unlink()
    assert meter.joules(before, meter.mark()) is None


def test_a_counter_for_root_only_is_named_and_the_next_source_is_tried(tmp_path, watch) -> None:
    rapl(tmp_path, "intel-rapl:0", "package-0", 5)

    def read(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_line(path)

    found = find_meter(tmp_path, now_s=watch.now_s, read=read)
    assert isinstance(found, NoMeter)
    assert f"no permission to read {tmp_path}/sys/class/powercap/intel-rapl:0/energy_uj" in found.reason
    put(tmp_path, "sys/class/hwmon/hwmon0/power1_input", 3_000_000)
    assert isinstance(find_meter(tmp_path, now_s=watch.now_s, read=read), PowerMeter)


def test_a_battery_that_discharges_tells_current_times_voltage(tmp_path, watch) -> None:
    battery(tmp_path, status="Discharging", current_now=-500_000, voltage_now=4_000_000)
    meter = find_meter(tmp_path, now_s=watch.now_s)
    before = meter.mark()
    watch.at_s = 10.0
    battery(tmp_path, status="Discharging", current_now=-1_000_000, voltage_now=4_000_000)
    assert meter.joules(before, meter.mark()) == pytest.approx(10 * (2.0 + 4.0) / 2)
    assert "whole device" in meter.source


def test_a_battery_on_the_charger_says_nothing_about_what_the_machine_uses(tmp_path, watch) -> None:
    battery(tmp_path, status="Charging", current_now=500_000, voltage_now=4_000_000)
    found = find_meter(tmp_path, now_s=watch.now_s)
    assert isinstance(found, NoMeter)
    assert "BAT0 is not discharging" in found.reason


def test_of_power_sensors_the_input_rail_is_read_and_named(tmp_path, watch) -> None:
    put(tmp_path, "sys/class/hwmon/hwmon1/name", "ina3221")
    put(tmp_path, "sys/class/hwmon/hwmon1/power1_input", 5_000_000)
    put(tmp_path, "sys/class/hwmon/hwmon1/power1_label", "VDD_IN")
    put(tmp_path, "sys/class/hwmon/hwmon1/power2_input", 2_000_000)
    meter = find_meter(tmp_path, now_s=watch.now_s)
    before = meter.mark()
    watch.at_s = 2.0
    assert meter.joules(before, meter.mark()) == pytest.approx(10.0)
    assert "ina3221 VDD_IN" in meter.source


def test_a_machine_without_any_meter_gives_every_reason(tmp_path, watch) -> None:
    found = find_meter(tmp_path, now_s=watch.now_s)
    assert isinstance(found, NoMeter)
    assert all(word in found.reason for word in ("RAPL", "battery", "hwmon"))


def processor(root: Path, *, khz: int, limit_khz: int = 2_000_000, cores: int = 2) -> None:
    for core in range(cores):
        put(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", khz if core else khz // 2)
        put(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", limit_khz)


def test_a_clock_far_below_its_limit_is_throttling(tmp_path) -> None:
    processor(tmp_path, khz=1_000_000)
    found = judge([look_at(tmp_path)] * 3)
    assert found.seen is True
    assert found.evidence == ("the clock was at 50% of its limit",)
    assert (found.median_mhz, found.limit_mhz) == (1_000, 2_000)


def test_the_busiest_core_counts_and_a_clock_near_its_limit_is_fine(tmp_path) -> None:
    processor(tmp_path, khz=1_900_000)
    assert judge([look_at(tmp_path)]).seen is False


def test_the_processors_own_throttle_events_count_when_they_happen_during_the_run(tmp_path) -> None:
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    put(tmp_path, counter, 7)
    before = look_at(tmp_path)
    assert judge([before, look_at(tmp_path)]).seen is False
    put(tmp_path, counter, 10)
    assert judge([before, look_at(tmp_path)]).evidence == ("the processor slowed itself down 3 times",)


FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.mark.parametrize(
    ("before", "after", "evidence"),
    [
        ("50000", "50000", ()),  # under-voltage and throttling long ago
        ("0", "50005", ("firmware: supply voltage too low", "firmware: throttled")),
        ("0", "80000", ("firmware: soft temperature limit",)),  # came and went between two looks
        ("0x4", "0x0", ("firmware: throttled",)),
    ],
)
def test_the_raspberry_pi_firmware_is_asked(tmp_path, before, after, evidence) -> None:
    put(tmp_path, FIRMWARE, before)
    first = look_at(tmp_path)
    put(tmp_path, FIRMWARE, after)
    assert judge([first, look_at(tmp_path)]).evidence == evidence


def test_a_machine_that_shows_nothing_gives_no_answer_instead_of_a_good_one(tmp_path) -> None:
    put(tmp_path, FIRMWARE, "nonsense")
    found = judge([look_at(tmp_path), look_at(tmp_path)])
    assert found.seen is None
    assert found.why_unknown is not None
