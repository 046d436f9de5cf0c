"""The store's tables and its longer statements. Small columns stand before the blobs, so that reading them stays cheap."""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = int.from_bytes(b"SFst", "big")
SCHEMA_VERSION: Final = 2

SCHEMA: Final = f"""
CREATE TABLE devices(
    outbox TEXT PRIMARY KEY,
    device TEXT NOT NULL,
    bundle_id TEXT NOT NULL,
    self_test_error REAL NOT NULL,
    first_seen_s REAL NOT NULL,
    last_seen_s REAL NOT NULL,
    bytes_in INTEGER NOT NULL DEFAULT 0,
    bytes_out INTEGER NOT NULL DEFAULT 0,
    samples INTEGER NOT NULL DEFAULT 0,
    repeats INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    malformed INTEGER NOT NULL DEFAULT 0,
    skipped_rows INTEGER NOT NULL DEFAULT 0,
    finished INTEGER NOT NULL DEFAULT 0,
    activity TEXT NOT NULL DEFAULT '',
    activity_s REAL NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE samples(
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    device TEXT NOT NULL,
    outbox TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    bundle_id TEXT NOT NULL,
    role TEXT NOT NULL,
    label INTEGER,
    tokens INTEGER NOT NULL,
    codec TEXT NOT NULL,
    rows BLOB NOT NULL,
    scales BLOB NOT NULL,
    targets BLOB,
    UNIQUE(outbox, ordinal)
) STRICT;
CREATE INDEX samples_by_role ON samples(role, seq, device, tokens, label);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

ADDITIONS: Final = """
CREATE TABLE IF NOT EXISTS arrivals(
    hour INTEGER PRIMARY KEY,
    last_seq INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS removals(
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at_s REAL NOT NULL,
    device TEXT,
    train_samples INTEGER NOT NULL,
    validation_samples INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    is_banned INTEGER NOT NULL,
    weights_deleted INTEGER NOT NULL DEFAULT 0
) STRICT;
"""
"""Tables that came later and that programs of this schema version can do without: when samples came, to the hour (`hour` is
counted since 1970, `last_seq` the newest sample stored in it), and what was removed on purpose: numbers only, and the name of
a device that was forgotten, so that it cannot come back unnoticed (`is_banned`) and what was trained on it can be named."""

INSERT_SAMPLE: Final = """
INSERT INTO samples(device, outbox, ordinal, bundle_id, role, label, tokens, codec, rows, scales, targets)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(outbox, ordinal) DO NOTHING
"""

NOTE_HELLO: Final = """
INSERT INTO devices(outbox, device, bundle_id, self_test_error, first_seen_s, last_seen_s)
VALUES (:outbox, :device, :bundle_id, :self_test_error, :now_s, :now_s)
ON CONFLICT(outbox) DO UPDATE SET bundle_id = :bundle_id, self_test_error = :self_test_error, last_seen_s = :now_s,
    finished = CASE WHEN :waiting_samples > 0 THEN 0 ELSE finished END
"""

NOTE_TRAFFIC: Final = """
UPDATE devices SET bytes_in = bytes_in + :bytes_in, bytes_out = bytes_out + :bytes_out, malformed = malformed + :malformed,
    activity = COALESCE(:activity, activity), activity_s = CASE WHEN :activity IS NULL THEN activity_s ELSE :now_s END,
    last_seen_s = :now_s
WHERE outbox = :outbox
"""

NOTE_ARRIVAL: Final = """
INSERT INTO arrivals(hour, last_seq) SELECT :hour, MAX(seq) FROM samples WHERE true
ON CONFLICT(hour) DO UPDATE SET last_seq = excluded.last_seq
"""
