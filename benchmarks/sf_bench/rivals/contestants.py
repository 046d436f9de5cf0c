"""Who is compared: names, what each needs, and under which processor instructions it runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from sf_contract.errors import UsageError

BASELINE: Final = "onnx-fp32"
REFERENCE: Final = "torch"
NATIVE: Final = "native"


class Rival(msgspec.Struct, frozen=True):
    """A way to run the front end that bundles are compared with.

    Attributes:
        name: for `--against`, tables and results.
        group: another name, for all rivals that share it.
        runtime: library it runs on, as in `--python RUNTIME=PATH`.
        packages: what the interpreter must have.
        setting: precision or file type, as its worker wants it.
        says: what it is, for the table.
    """

    name: str
    group: str
    runtime: str
    packages: tuple[str, ...]
    setting: str
    says: str


RIVALS: Final = (
    Rival(BASELINE, BASELINE, "onnx", ("onnxruntime",), "", "the same graph, nothing quantized, fp32 rows"),
    Rival(REFERENCE, REFERENCE, "torch", ("torch", "transformers"), "float32", "eager fp32"),
    Rival("torch-bf16", "torch-bf16", "torch", ("torch", "transformers"), "bfloat16", "eager bf16"),
    Rival("openvino-fp32", "openvino", "openvino", ("openvino",), "f32", "fp32 graph, fp32 hint"),
    Rival("openvino-default", "openvino", "openvino", ("openvino",), "", "fp32 graph, no hint"),
    Rival("openvino-int8-weights", "openvino-int8", "openvino", ("openvino", "nncf"), "weights", "NNCF int8 weights"),
    Rival(
        "openvino-int8-full", "openvino-int8", "openvino", ("openvino", "nncf"), "full", "NNCF full int8, calibrated"
    ),
    Rival("llama.cpp-q8_0", "llama.cpp", "llama.cpp", ("llama_cpp",), "q8_0", "GGUF Q8_0"),
    Rival("llama.cpp-q4_0", "llama.cpp", "llama.cpp", ("llama_cpp",), "q4_0", "GGUF Q4_0, embedding Q8_0"),
    Rival("llama.cpp-q4_1", "llama.cpp", "llama.cpp", ("llama_cpp",), "q4_1", "GGUF Q4_1, embedding Q8_0"),
)
RUNTIMES: Final = tuple(dict.fromkeys(rival.runtime for rival in RIVALS))
PIP_NAMES: Final = {"llama_cpp": "llama-cpp-python"}

ISAS: Final[Mapping[str, Mapping[str, str]]] = {
    NATIVE: {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
"""Environment that keeps a library to a processor's instructions; `native` lets it use all."""

_OBEYS_ISA: Final = frozenset({"torch", "openvino"})
_ABOVE: Final = {"avx2": ("avx512f", "avx_vnni", "amx_int8"), "avx512": ("amx_int8", "avx512_bf16")}
"""Processor flags that the limit forbids; where a processor has none of them, the limit changes nothing."""


def parse_rivals(text: str) -> tuple[Rival, ...]:
    """Rivals by name or group, each once, the baseline first whether it was named or not.

    Raises:
        UsageError: a name is unknown.
    """
    wanted = {BASELINE, *(part.strip() for part in text.split(","))}
    known = {rival.name for rival in RIVALS} | {rival.group for rival in RIVALS} | {"all"}
    if unknown := sorted(wanted - known):
        raise UsageError(f"--against does not know {unknown[0]!r}", cure=f"choose from {', '.join(sorted(known))}")
    return tuple(rival for rival in RIVALS if {rival.name, rival.group, "all"} & wanted)


def isas_of(runtime: str, isas: Sequence[str], flags: Sequence[str]) -> tuple[str, ...]:
    """Instruction limits under which a runtime is measured: only those that make a difference to it here."""
    if runtime not in _OBEYS_ISA:
        return (NATIVE,)
    return tuple(isa for isa in isas if isa == NATIVE or set(_ABOVE[isa]) & set(flags)) or (NATIVE,)


def isa_note(isas: Sequence[str], flags: Sequence[str]) -> str:
    """What the table says about instruction limits."""
    idle = [isa for isa in isas if isa != NATIVE and not set(_ABOVE[isa]) & set(flags)]
    limits = [isa for isa in isas if isa != NATIVE and isa not in idle]
    words = []
    if idle:
        words.append(
            f"this processor has nothing above {', '.join(idle)}: allowed and forbidden are the same, measured once"
        )
    if limits:
        words.append(
            f"limits ({', '.join(limits)}) bind PyTorch and OpenVINO; ONNX Runtime has no such switch, and llama.cpp's "
            "instructions are chosen when it is built"
        )
    return "; ".join(words)
