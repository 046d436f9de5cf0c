"""Reading a machine's state from made-up `/sys` and `/proc` trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sf_edge.governor.decisions import Reading
from sf_edge.governor.probe import SystemProbe

PRESSURE = "some avg10={:.2f} avg60=1.00 avg300=0.50 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"


@pytest.fixture
def machine(tmp_path: Path):
    """Writes files of the tree and gives the reading."""

    def write(files: dict[str, object]) -> Reading:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
        return SystemProbe(tmp_path).read()

    return write


def supply(name: str, **files: object) -> dict[str, object]:
    return {f"sys/class/power_supply/{name}/{file}": content for file, content in files.items()}


def battery(name: str = "BAT0", **files: object) -> dict[str, object]:
    return supply(name, type="Battery", **{"status": "Discharging", **files})


def zone(number: int, millidegrees: object) -> dict[str, object]:
    return {f"sys/class/thermal/thermal_zone{number}/temp": millidegrees}


def test_a_machine_that_shows_nothing_gives_an_empty_reading(machine) -> None:
    assert machine({}) == Reading()


@pytest.mark.parametrize(
    ("files", "percent"),
    [
        ({"capacity": 57}, 57),
        ({"energy_now": 12_000_000, "energy_full": 48_000_000}, 25),
        ({"charge_now": 1_500_000, "charge_full": 3_000_000}, 50),
        ({"charge_now": 1_500_000, "charge_full_design": 2_000_000}, 75),
        ({"capacity": 255, "charge_now": 1, "charge_full": 4}, 25),
        ({"capacity": -1}, None),
        ({"capacity": "full"}, None),
        ({"capacity": b"\xff\xfe\x00"}, None),
        ({"capacity": ""}, None),
        ({"energy_now": 49_000_000, "energy_full": 48_000_000}, 100),
        ({"energy_now": 480_000_000, "energy_full": 48_000_000}, None),
        ({"energy_now": 48_000_000, "energy_full": 0}, None),
        ({"capacity": 50, "present": 0}, None),
        ({"capacity": 50, "scope": "Device"}, None),
    ],
)
def test_the_charge_comes_from_whatever_the_driver_tells(machine, files, percent) -> None:
    assert machine(battery(**files)).battery_percent == percent


def test_of_several_batteries_the_larger_counts_more(machine) -> None:
    small = battery("BAT0", capacity=100, energy_full=10_000_000, status="Full")
    large = battery("BAT1", capacity=20, energy_full=30_000_000)
    found = machine({**small, **large})
    assert (found.battery_percent, found.on_battery) == (40, True)
    assert machine(supply("BAT0", energy_full="?")).battery_percent == 60, "sizes unknown: all count the same"


@pytest.mark.parametrize(
    ("status", "chargers", "on_battery"),
    [
        ("Discharging", {}, True),
        ("Discharging", {"AC": 1}, True),
        ("Charging", {"AC": 0}, False),
        ("Not charging", {}, False),
        ("Full", {}, False),
        ("Unknown", {"AC": 1}, False),
        ("Unknown", {"AC": 0, "usb": 0}, True),
        ("Unknown", {"AC": 0, "usb": 1}, False),
        ("Unknown", {}, None),
        ("", {"AC": "?"}, None),
    ],
)
def test_whether_a_charger_feeds_the_machine(machine, status, chargers, on_battery) -> None:
    kinds = {"AC": "Mains", "usb": "USB_PD"}
    files = [supply(name, type=kinds[name], online=online) for name, online in chargers.items()]
    tree = battery(status=status, capacity=50)
    for more in files:
        tree |= more
    assert machine(tree).on_battery is on_battery


def test_a_charger_or_a_mouse_without_a_battery_is_no_battery(machine) -> None:
    mouse = supply("hid", type="Battery", scope="Device", capacity=5, status="Discharging")
    found = machine({**mouse, **supply("AC", type="Mains", online=0)})
    assert (found.battery_percent, found.on_battery) == (None, None)


@pytest.mark.parametrize("nonsense", [-274_000, 200_000, "", "hot", b"\x80", "9" * 5000])
def test_the_hottest_zone_counts_and_nonsense_does_not(machine, nonsense) -> None:
    assert machine(zone(2, nonsense)).temperature_c is None
    assert machine({**zone(0, 41_500), **zone(1, 63_250)}).temperature_c == 63.25


def test_other_sensors_are_asked_only_where_no_zone_answers(machine) -> None:
    chips = {"sys/class/hwmon/hwmon0/temp1_input": 50_000, "sys/class/hwmon/hwmon1/temp2_input": 71_000}
    limits = {"sys/class/hwmon/hwmon1/temp2_crit": 100_000, "sys/class/hwmon/hwmon1/fan1_input": 90_000}
    assert machine({**chips, **limits, **zone(0, -274_000)}).temperature_c == 71
    assert machine(zone(0, 30_000)).temperature_c == 30


def test_pressure_is_that_of_the_last_ten_seconds(machine) -> None:
    found = machine({"proc/pressure/memory": PRESSURE.format(12.5), "proc/pressure/cpu": PRESSURE.format(99)})
    assert (found.memory_pressure_percent, found.cpu_pressure_percent) == (12.5, 99)


@pytest.mark.parametrize("text", ["", "some", "some avg10=x", "full avg10=3.00", "some avg10=400.00", b"\x00\xff"])
def test_pressure_that_is_none_is_none(machine, text) -> None:
    assert machine({"proc/pressure/memory": text}).memory_pressure_percent is None


def test_free_memory_is_read_for_kernels_that_know_no_pressure(machine) -> None:
    meminfo = "MemTotal:        4000000 kB\nMemFree:          100000 kB\nMemAvailable:    1000000 kB\n"
    assert machine({"proc/meminfo": meminfo}).memory_available_percent == 25
    assert machine({"proc/meminfo": meminfo.replace("4000000", "0")}).memory_available_percent is None
    assert machine({"proc/meminfo": "MemTotal: 1 kB\n"}).memory_available_percent is None


def test_a_folder_that_may_not_be_read_is_as_good_as_none(machine, tmp_path, monkeypatch) -> None:
    machine(battery(capacity=10) | zone(0, 90_000))

    def denied(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(Path, "read_text", denied)
    assert SystemProbe(tmp_path).read() == Reading()


@given(
    st.dictionaries(st.sampled_from(["type", "status", "capacity", "energy_now", "energy_full", "online"]), st.binary())
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_the_files_give_a_reading_in_range(machine, content) -> None:
    files = {**battery(capacity=50), **zone(0, content.get("capacity", b"")), "proc/meminfo": content.get("type", b"")}
    found = machine(files | supply("BAT0", **content))
    assert found.battery_percent is None or 0 <= found.battery_percent <= 100


def test_this_machine_can_be_read() -> None:
    assert isinstance(SystemProbe().read(), Reading)
