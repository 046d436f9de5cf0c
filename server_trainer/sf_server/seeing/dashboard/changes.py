"""What differs between two states of a run, so that a page with 1,000 devices need not get all of them every second. Pure."""

from __future__ import annotations

import msgspec

from sf_server.seeing.state import RunState, to_json

PART_OF_ROWS = "devices"


def full(state: RunState) -> bytes:
    """The whole state, for a page that knows nothing yet."""
    return to_json(state)


def changed(old: RunState, new: RunState) -> bytes | None:
    """The parts of the state that are others now, as one JSON object; None when only the time is.

    `devices` holds only devices that are new or changed, `forgotten` the names of those that are no more.
    """
    parts: dict[str, object] = {
        name: getattr(new, name)
        for name in new.__struct_fields__
        if name not in {PART_OF_ROWS, "taken_s"} and getattr(new, name) != getattr(old, name)
    }
    before = {device.name: device for device in old.devices}
    rows = [device for device in new.devices if before.pop(device.name, None) != device]
    if rows:
        parts[PART_OF_ROWS] = rows
    if before:
        parts["forgotten"] = sorted(before)
    return msgspec.json.encode({**parts, "taken_s": new.taken_s}) if parts else None
