"""What `sf-edge predict --help` says, and its options: light, since every command line is parsed with it."""

from __future__ import annotations

import argparse
from typing import Final

DESCRIPTION: Final = """\
Which class does a text belong to? This device computes the model's first layers with its bundle, the server (sf-server serve)
the rest, with what was learnt. The text itself stays here; the activations that are sent can be turned back into much of it by
whoever runs the server. Nothing is stored, here or there."""

EPILOG: Final = """\
Texts come from the command line, from --data, or line by line from standard input. Answers are printed as they come, one line
per text, with --json one JSON document per text.

examples:
  sf-edge predict --bundle bundle/ --server tcp://127.0.0.1:5555 "wake me up at six"
  sf-edge predict --config edge.toml --data new.jsonl --json          the settings of sf-edge run; flags win
  tail -f notes.txt | sf-edge predict --bundle bundle/ --server tcp://lab:5556 --server-key 5e1f...
  sf-edge predict --config edge.toml '{"sentence1": "It rains.", "sentence2": "The sun shines."}'     several columns"""


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """The options; names are those of `sf_edge.predict.command.PredictSettings`."""
    add = parser.add_argument
    add(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="a text; where the template has several columns, a JSON object with them",
    )
    add(
        "--bundle",
        metavar="DIR",
        help="bundle folder, or a folder of several quantizations of one front end (required)",
    )
    add("--server", metavar="ADDRESS", help="tcp://HOST:PORT or ipc://PATH of sf-server serve (required)")
    add("--data", metavar="FILE", help=".jsonl or .csv file of texts")
    add("--device", metavar="NAME", help="this device's name on the server (default: the host name)")
    add(
        "--classes",
        type=int,
        metavar="N",
        help="how many of the likeliest classes are told in JSON, 1 to 16 (default 5)",
    )
    add("--timeout-s", type=float, metavar="S", help="patience with the network for one answer (default 10)")
    add("--threads", type=int, metavar="N", help="processor threads for the front end (default 1)")
    add("--max-tokens", type=int, metavar="N", help="cut longer texts (default and most: the bundle's)")
    add(
        "--trust", metavar="FILE|DIR", help="public keys (.pub) whose bundles are accepted (default: unsigned ones too)"
    )
    add("--key", metavar="FILE", help="this device's secret key, from sf-edge keygen")
    add(
        "--server-key",
        metavar="FILE|HEX",
        help="the server's public key; encrypts the link, needed unless the server is on this machine",
    )
    add("--insecure", action="store_true", help="send in the clear over a network, to a server that does not encrypt")
    add("--config", metavar="FILE", help="TOML file with these settings, or those of sf-edge run; flags win")
    add("--json", action="store_true", help="print one JSON document per text on standard output")
