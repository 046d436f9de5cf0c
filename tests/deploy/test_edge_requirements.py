"""`requirements-edge.txt`: an allow-list of packages, the tested versions, a wheel for every Python and machine named."""

from __future__ import annotations

import dataclasses

import pytest

import edge_requirements
from edge_requirements import CONSTRAINTS, FILE, MACHINES, PACKAGES, PYTHONS, Wheel, parse, pins, problems, render
from sf_edge.slim import NEEDED

MOST_PACKAGES = 8


@pytest.fixture(scope="module")
def text() -> str:
    return FILE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def constraints() -> str:
    return CONSTRAINTS.read_text(encoding="utf-8")


def test_the_file_names_the_packages_a_device_needs_in_the_tested_versions(text, constraints):
    assert problems(text, constraints) == []
    assert len({wheel.name for wheel in parse(text)}) <= MOST_PACKAGES
    assert frozenset(PACKAGES) == NEEDED


def test_every_package_has_a_wheel_for_every_python_and_machine(text):
    wheels = parse(text)
    for name in PACKAGES:
        for python in PYTHONS:
            for machine in MACHINES:
                fitting = [
                    wheel for wheel in wheels if wheel.name == name and wheel.fits(python=python, machine=machine)
                ]
                assert len(fitting) == 1, (name, python, machine, fitting)


def test_the_file_is_what_its_own_wheels_are_written_as(text):
    assert render(parse(text)) == text


def test_it_names_no_address(text):
    assert "://" not in text


def test_another_package_another_version_and_a_missing_wheel_are_named(text, constraints):
    wheels = parse(text)
    stranger = Wheel("torch", "2.13.0", "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl", "0" * 64)
    assert "torch is not on the list of packages a device needs" in problems(render([*wheels, stranger]), constraints)
    older = [dataclasses.replace(wheel, version="1.0") if wheel.name == "numpy" else wheel for wheel in wheels]
    assert f"numpy==1.0, but constraints.txt has {pins(constraints)['numpy']}" in problems(render(older), constraints)
    x86_only = [wheel for wheel in wheels if wheel.name != "pyzmq" or "aarch64" not in wheel.file]
    assert "pyzmq has no wheel for Python 3.12 on aarch64" in problems(render(x86_only), constraints)
    without = [wheel for wheel in wheels if wheel.name != "cffi"]
    assert "cffi is missing" in problems(render(without), constraints)


def test_a_line_without_hashes_and_a_line_that_is_no_requirement_are_refused(text):
    with pytest.raises(ValueError, match="numpy has 0 hashes for 1 wheels"):
        parse("# numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl\nnumpy==2.4.6\n")
    with pytest.raises(ValueError, match="is no requirement"):
        parse(f"{text}--extra-index-url somewhere\n")


def test_the_check_fails_when_the_file_is_out_of_date(tmp_path, monkeypatch, text, capsys):
    monkeypatch.setattr(edge_requirements, "FILE", tmp_path / "requirements-edge.txt")
    edge_requirements.FILE.write_text(text.replace("numpy==", "numpy==9."), encoding="utf-8")
    assert edge_requirements.main(["--check"]) == 1
    assert "numpy==9.2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "python", "machine", "fits"),
    [
        ("x-1-cp311-cp311-manylinux_2_28_x86_64.whl", "3.11", "x86_64", True),
        ("x-1-cp311-cp311-manylinux_2_28_x86_64.whl", "3.12", "x86_64", False),
        ("x-1-cp311-cp311-manylinux_2_28_x86_64.whl", "3.11", "aarch64", False),
        ("x-1-cp38-abi3-manylinux_2_28_aarch64.manylinux2014_aarch64.whl", "3.13", "aarch64", True),
        ("x-1-cp312-abi3-manylinux_2_28_aarch64.whl", "3.11", "aarch64", False),
    ],
)
def test_a_wheels_name_tells_where_it_fits(file, python, machine, fits):
    assert Wheel("x", "1", file, "0" * 64).fits(python=python, machine=machine) is fits
