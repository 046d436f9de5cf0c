"""Upper bounds on everything that comes from outside, checked before memory is set aside for it."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

MAX_HEADER_BYTES: Final = 256 * KIB
"""JSON header of one message; 256 samples with their labels need about 30 KiB."""

CURVE_FRAME_BYTES: Final = 64
"""What encryption adds to one frame, rounded up from 33; ZeroMQ's limit counts it."""

MAX_ACTIVITY_CHARACTERS: Final = 160
"""What a device says it is doing, in a `Ping`: one line of a table."""

MAX_BUFFERS: Final = 3
"""Raw frames behind a header: rows, scales, targets."""

MAX_BUFFER_BYTES: Final = 64 * MIB
"""One raw frame. 2,048 tokens of hidden size 8,192 in fp32 fill it exactly."""

MAX_SAMPLES_PER_BATCH: Final = 256

MAX_SHARED_BATCH_BYTES: Final = 1 * MIB
"""Payload of a batch of several samples; a sample that is larger travels alone."""

MAX_TEXTS_PER_REQUEST: Final = 64
MAX_CLASSES_PER_TEXT: Final = 16
"""What one request for predictions may ask for; the answer then needs at most 70 KiB."""

MAX_TOKENS_PER_SAMPLE: Final = 32_768
MAX_HIDDEN: Final = 65_536
MAX_VOCABULARY: Final = 2_000_000
MAX_LABELS: Final = 10_000

MAX_MANIFEST_BYTES: Final = 1 * MIB
MAX_BUNDLE_FILES: Final = 64
MAX_BUNDLE_BYTES: Final = 4 * 1024 * MIB
"""All files of a bundle together."""

MAX_GRAPH_BYTES: Final = 2 * 1024 * MIB - 1
"""A graph is one Protocol Buffers message, and no reader takes a larger one."""

MAX_TOKENIZER_BYTES: Final = 128 * MIB
"""Tokenizers of 262,144 tokens have about 33 MB."""

MAX_SIGNATURE_BYTES: Final = 1 * KIB
MAX_KEY_FILE_BYTES: Final = 64 * KIB
MAX_TRUSTED_KEY_FILES: Final = 1_000
MAX_AUTHORISED_KEY_FILES: Final = 10_000
MAX_SELF_TEST_TOKENS: Final = 4_096

MAX_RECORD_BYTES: Final = 1 * MIB
"""One line of a data file; longer lines are reported and skipped, never held in memory whole."""
