"""`sf-export families`: the architectures that are tested, and the kinds that are refused.

There is no code per family: an architecture that is not listed is cut the same way, tried on the loaded model, and
refused when front and back together do not compute what the whole model computes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import msgspec

from sf_contract.command import ArgumentParser, print_json
from sf_contract.manifest import Task

_BOTH: Final = (Task.TEXT_CLASSIFICATION, Task.CAUSAL_LM)
_CLASSIFICATION: Final = (Task.TEXT_CLASSIFICATION,)
_LINE_CHARACTERS: Final = 118


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """An architecture that is tested at every release.

    Attributes:
        family: `model_type` in the model's config.json.
        example: a model of this architecture on the hub.
        tasks: what it can be fine-tuned for, as far as Transformers has a class for it.
        notes: what is special about it, and how it is handled.
    """

    family: str
    example: str
    tasks: tuple[Task, ...]
    notes: str = ""


class RefusedKind(msgspec.Struct, frozen=True, kw_only=True):
    """Models that are refused.

    Attributes:
        kind: what they have in common.
        examples: values of `model_type`.
        reason: why.
        found_by: what the refusal looks at.
    """

    kind: str
    examples: tuple[str, ...]
    reason: str
    found_by: str


_ON_ENTRY: Final = "done on the device, replaced by the rows on the server"

FAMILIES: Final = (
    Family(
        family="bert",
        example="google-bert/bert-base-uncased",
        tasks=_CLASSIFICATION,
        notes=f"positions, segments and a norm on entry: {_ON_ENTRY}; padded on the right, the head reads the first token",
    ),
    Family(
        family="bloom",
        example="bigscience/bloom-560m",
        tasks=_BOTH,
        notes=f"norm on entry: {_ON_ENTRY}; ALiBi, counted from the attention mask on both sides of the cut",
    ),
    Family(
        family="deberta-v2",
        example="microsoft/deberta-v3-base",
        tasks=_CLASSIFICATION,
        notes="relative positions belong to the encoder and not to a layer: both sides hold them",
    ),
    Family(
        family="distilbert",
        example="distilbert/distilbert-base-uncased",
        tasks=_CLASSIFICATION,
        notes=f"positions and a norm on entry: {_ON_ENTRY}",
    ),
    Family(
        family="electra",
        example="google/electra-small-discriminator",
        tasks=_CLASSIFICATION,
        notes="embeddings narrower than the layers: widened on the device",
    ),
    Family(
        family="gemma2",
        example="google/gemma-2-2b",
        tasks=_BOTH,
        notes=f"embedding scale on entry: {_ON_ENTRY}; soft-capped attention; every other layer sees a sliding window",
    ),
    Family(
        family="gemma3_text",
        example="google/gemma-3-1b-it",
        tasks=_BOTH,
        notes=f"embedding scale on entry: {_ON_ENTRY}; local and global layers with rotary frequencies of their own",
    ),
    Family(
        family="gpt2",
        example="openai-community/gpt2",
        tasks=_BOTH,
        notes=f"positions on entry: {_ON_ENTRY}; tied embedding",
    ),
    Family(
        family="gpt_neox",
        example="EleutherAI/pythia-160m",
        tasks=_BOTH,
        notes="attention and MLP side by side; rotary positions for a part of each head",
    ),
    Family(
        family="granite",
        example="ibm-granite/granite-3.3-2b-base",
        tasks=(Task.CAUSAL_LM,),
        notes=f"embedding scale on entry: {_ON_ENTRY}; Transformers has no classification class for it",
    ),
    Family(
        family="llama",
        example="HuggingFaceTB/SmolLM2-135M",
        tasks=_BOTH,
        notes="grouped-query attention; rotary positions",
    ),
    Family(
        family="mistral",
        example="mistralai/Mistral-7B-v0.1",
        tasks=_BOTH,
        notes="sliding window, also for sequences longer than it",
    ),
    Family(
        family="modernbert",
        example="answerdotai/ModernBERT-base",
        tasks=_CLASSIFICATION,
        notes=f"norm on entry: {_ON_ENTRY}; local and global layers with rotary frequencies of their own",
    ),
    Family(family="olmo2", example="allenai/OLMo-2-0425-1B", tasks=_BOTH, notes="norms after attention and MLP"),
    Family(
        family="opt",
        example="facebook/opt-125m",
        tasks=_BOTH,
        notes=f"positions that start at 2, and an embedding that may be narrower than the layers: {_ON_ENTRY}",
    ),
    Family(
        family="phi3",
        example="microsoft/Phi-4-mini-instruct",
        tasks=_BOTH,
        notes="fused projections; sliding window; with LongRoPE, sequences up to the original context only",
    ),
    Family(
        family="qwen2",
        example="Qwen/Qwen2.5-0.5B",
        tasks=_BOTH,
        notes="biases on query, key and value; tied embedding in the small models",
    ),
    Family(family="qwen3", example="Qwen/Qwen3-0.6B", tasks=_BOTH, notes="norms on query and key"),
    Family(
        family="roberta",
        example="FacebookAI/roberta-base",
        tasks=_CLASSIFICATION,
        notes=f"positions counted from the padding id: {_ON_ENTRY}",
    ),
    Family(
        family="smollm3",
        example="HuggingFaceTB/SmolLM3-3B-Base",
        tasks=_BOTH,
        notes="some layers without rotary positions",
    ),
)
"""What the command prints is what tests/parity/test_families.py runs on."""

REFUSED: Final = (
    RefusedKind(
        kind="encoder-decoders",
        examples=("t5", "bart", "whisper"),
        reason="decoder layers read the encoder's last layer, so no cut leaves a front that runs alone",
        found_by="config",
    ),
    RefusedKind(
        kind="recurrent and hybrid models",
        examples=("mamba", "rwkv", "recurrent_gemma", "jamba", "qwen3_5_text"),
        reason="they carry a state from token to token, in as many steps as there are tokens; a front end has no loop",
        found_by="model class",
    ),
    RefusedKind(
        kind="mixtures of experts",
        examples=("mixtral", "qwen3_moe", "gpt_oss"),
        reason="PyTorch's exporter cannot express the choice of experts as an ONNX graph",
        found_by="config",
    ),
    RefusedKind(
        kind="attention whose form depends on the length",
        examples=("big_bird",),
        reason="long sequences take other code than short ones, and a graph holds only one of them",
        found_by="config",
    ),
    RefusedKind(
        kind="one block used for all layers",
        examples=("albert",),
        reason="LoRA above the cut would change the layers below it",
        found_by="structure: no list of as many blocks as there are layers",
    ),
    RefusedKind(
        kind="layers in several lists",
        examples=("funnel", "xlm"),
        reason="the layers below a cut are not the first ones of one list",
        found_by="structure",
    ),
    RefusedKind(
        kind="hidden states that are not one row per token",
        examples=("xlnet", "longformer", "gemma3n_text"),
        reason="the wire carries one row of hidden channels for every token",
        found_by="shape at the cut",
    ),
    RefusedKind(
        kind="layers that read more than the layer before",
        examples=("gemma4_text",),
        reason="per-layer embeddings, or keys and values of earlier layers, would have to cross the cut too",
        found_by="running front and back against the whole model",
    ),
    RefusedKind(
        kind="models that mix padding into the text",
        examples=("fnet", "convbert", "mobilebert"),
        reason="a sequence would give other activations alone than in a batch",
        found_by="running a sequence alone and in a batch",
    ),
    RefusedKind(
        kind="models of something else than text",
        examples=("vit",),
        reason="there are no token ids",
        found_by="config: no vocabulary",
    ),
)

_DESCRIPTION: Final = """\
List the architectures that are tested, and the kinds of models that are refused.

An architecture that is not listed is worth a try: the export runs the cut model against the whole one before it does
anything that takes long, and refuses what does not agree.
"""

_EPILOG: Final = """\
examples:
  sf-export families
  sf-export families --json
"""


def families_command(argv: Sequence[str]) -> int:
    """Print the list, as a table or as JSON."""
    parser = ArgumentParser(prog="sf-export families", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    if "json" in parser.parse_args(argv):
        print_json(msgspec.to_builtins({"families": FAMILIES, "refused": REFUSED}))
    else:
        print(families_table(), flush=True)
    return 0


def families_table() -> str:
    """The list for people."""
    family_column = max(len(entry.family) for entry in FAMILIES) + 2
    example_column = max(len(entry.example) for entry in FAMILIES) + 2
    lines = [f"{'family':{family_column}}{'for example':{example_column}}tasks"]
    for entry in FAMILIES:
        tasks = ", ".join(task.value for task in entry.tasks)
        lines += [f"{entry.family:{family_column}}{entry.example:{example_column}}{tasks}"]
        lines += _wrapped(entry.notes, indent=family_column)
    lines += ["", "refused"]
    for kind in REFUSED:
        lines += [f"{kind.kind} ({', '.join(kind.examples)})", *_wrapped(kind.reason, indent=family_column)]
    return "\n".join([*lines, "", _DESCRIPTION.partition("\n\n")[2].rstrip()])


def _wrapped(text: str, *, indent: int) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(text, _LINE_CHARACTERS, initial_indent=margin, subsequent_indent=margin)
