"""What an outbox has gone through since it was made; the numbers that prove "computed once, uploaded once"."""

from __future__ import annotations

import msgspec


class Counters(msgspec.Struct, forbid_unknown_fields=True):
    """Totals over every run of one outbox. They are saved together with what they count."""

    rows: int = 0
    """Rows taken from the data file, skipped ones included."""
    skipped: int = 0
    """Rows that gave no sample."""
    not_finite: int = 0
    """Rows among the skipped ones whose activations were not finite."""
    samples: int = 0
    """Samples computed and given an ordinal."""
    cut: int = 0
    """Samples cut to the longest allowed length."""
    forward_passes: int = 0
    """Runs of the front end on a row (the self-test is not counted)."""
    uploaded_samples: int = 0
    """Samples sent for the first time."""
    resent_samples: int = 0
    """Samples sent again because no answer came."""
    acknowledged: int = 0
    """Samples the server confirmed as stored."""
    rejected: int = 0
    """Samples the server will never accept."""
    bytes_up: int = 0
    """Bytes of frames handed to ZeroMQ."""
    bytes_down: int = 0
    """Bytes of frames received."""
    undecodable_messages: int = 0
    """Messages from the server that could not be read."""
    cpu_s: float = 0.0
    """Processor time of the process, all threads."""
