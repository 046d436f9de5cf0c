from __future__ import annotations

from pathlib import Path

import commands
from commands import Plan
from monitor import StoreWatch
from out_folder import OutFolder
from reports import StoredDevice


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Server:
    asked = 0

    def __call__(self) -> list[StoredDevice]:
        self.asked += 1
        return [StoredDevice("phone-1", samples=self.asked)]


def test_the_server_is_asked_every_few_seconds_while_devices_send_and_not_afterwards() -> None:
    clock, server = Clock(), Server()
    watch = StoreWatch(server, clock=clock)
    samples = []
    for clock.now_s, sending in ((0.0, True), (2.9, True), (3.0, True), (9.0, False), (20.0, False)):
        samples.append(watch.devices(fresh=sending)["phone-1"].samples)
    assert samples == [1, 1, 2, 2, 2]


def test_each_device_is_told_its_own_file_and_outbox() -> None:
    plan = Plan(
        out=OutFolder(Path("out")), model="m", split_layer=4, max_tokens=64, labels="a,b", epochs=3, devices=4
    )  # fmt: skip
    assert " ".join(commands.edge_command(plan, "phone-2", server="tcp://127.0.0.1:5555")) == (
        "sf-edge run --bundle out/bundle --server tcp://127.0.0.1:5555 --data out/devices/phone-2.jsonl "
        "--device phone-2 --outbox out/outbox/phone-2 --holdout 0.1 --threads 1 --json"
    )
