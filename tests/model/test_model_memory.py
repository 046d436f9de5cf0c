"""A model is held once, in its own dtype; only one block at a time, and the front end, are fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from support.tiny_models import tiny_tokenizer

pytestmark = pytest.mark.slow

HIDDEN, FEED_FORWARD, LAYERS, VOCABULARY, CUT = 1024, 4096, 13, 2048, 1

CHILD = """
import sys, torch
from pathlib import Path
from sf_contract.manifest import Task, TaskSpec, Template
from sf_export.model import load_base
from sf_export.settings import ExportSettings
import transformers.models.llama.modeling_llama
import transformers.generation

def peak_bytes():
    # Not getrusage: what it says includes the process this one was started from.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024

class Settings:
    model, revision, text_pair = sys.argv[1], None, None

before = peak_bytes()
spec = TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(), labels=("a", "b"))
base = load_base(Settings, spec, say=lambda line: None)
token_ids = torch.arange(3, 35)[None]
with torch.no_grad():
    rows = base.model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids)).logits
base.free_memory()
front = base.front(int(sys.argv[2]))
assert rows.dtype is next(front.parameters()).dtype is torch.float32
print(peak_bytes() - before)
"""


@pytest.fixture
def half_gigabyte(tmp_path: Path) -> Path:
    """A Llama of about 0.5 GB in bf16."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=VOCABULARY,
        pad_token_id=0,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    some = torch.randn(HIDDEN * FEED_FORWARD, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj": (FEED_FORWARD, HIDDEN) for name in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj"] = (HIDDEN, FEED_FORWARD)
        shapes |= {f"{prefix}.{name}_layernorm": (HIDDEN,) for name in ("input", "post_attention")}
    tensors = {
        f"{name}.weight": some[: torch.Size(shape).numel()].view(shape).clone() for name, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_loading_computing_and_cutting_stays_within_the_model_and_its_front_end(half_gigabyte: Path) -> None:
    """The whole limit is 1.3 x (N + 2 GB); here without what every program needs: libraries, graph, tokenizer."""
    nbytes = (half_gigabyte / "model.safetensors").stat().st_size
    assert json.loads((half_gigabyte / "config.json").read_text())["num_hidden_layers"] == LAYERS
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(half_gigabyte), str(CUT)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    growth = int(child.stdout.splitlines()[-1])
    print(f"\n{nbytes / 1e6:.0f} MB of weights, memory grew by {growth / 1e6:.0f} MB")
    assert nbytes > 400e6
    assert growth < 1.3 * nbytes + 150e6
