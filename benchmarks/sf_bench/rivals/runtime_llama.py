"""Worker for llama.cpp through llama-cpp-python's plain bindings. Standard library, NumPy and llama_cpp only.

llama.cpp always computes the head, so the layers below the cut are timed as a difference: a model with `a + k` layers
minus one with `a` layers, both with the same embedding and head, costs `k` layers and nothing else. Looking up the
embeddings, which the other runtimes are charged for, is free here.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import numpy as np

from sf_bench.rivals.protocol import FloatRows, Job, Times, timed

_POOLING_NONE: Final = 0


class _Context:
    """One GGUF file, ready to process a prompt of at most `tokens` tokens in one piece."""

    def __init__(self, path: str, *, tokens: int, threads: int, embeddings: bool) -> None:
        self._llama: Any = importlib.import_module("llama_cpp")
        model = self._llama.llama_model_load_from_file(path.encode(), self._llama.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = tokens
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.embeddings = embeddings
        parameters.pooling_type = _POOLING_NONE
        self._context = self._llama.llama_init_from_model(model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot run {path}")
        self._hidden = self._llama.llama_model_n_embd(model)
        self._batch = self._llama.llama_batch_init(tokens, 0, 1)
        self._every_token = embeddings

    def run(self, token_ids: tuple[int, ...]) -> None:
        """Process a prompt from an empty cache; logits of the last token only, or embeddings of all."""
        batch = self._batch
        batch.n_tokens = len(token_ids)
        for position, token in enumerate(token_ids):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = self._every_token or position == len(token_ids) - 1
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), False)
        code = self._llama.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode gives {code}")
        self._llama.llama_synchronize(self._context)

    def embeddings(self, token_ids: tuple[int, ...]) -> FloatRows:
        """What the final norm leaves, `[tokens, hidden]`."""
        self.run(token_ids)
        rows = [self._llama.llama_get_embeddings_ith(self._context, index) for index in range(len(token_ids))]
        return np.array([np.ctypeslib.as_array(row, (self._hidden,)) for row in rows], dtype=np.float32)


class LlamaRuntime:
    """The layers below the cut as the difference of two models."""

    def __init__(self, shallow: _Context, deep: _Context, below_cut: _Context) -> None:
        self._shallow, self._deep, self._below_cut = shallow, deep, below_cut
        llama = importlib.import_module("llama_cpp")
        information = llama.llama_print_system_info().decode()
        enabled = [part.partition("=")[0].strip() for part in information.split("|") if part.strip().endswith("= 1")]
        flags = " ".join(flag.rpartition(":")[2].strip() for flag in enabled)
        self.version = f"llama-cpp-python {llama.__version__}, built with {flags}"

    def run(self, token_ids: tuple[int, ...]) -> Times:
        """Times of the deep model minus those of the shallow one."""
        return timed(lambda: self._deep.run(token_ids)) - timed(lambda: self._shallow.run(token_ids))

    def rows(self, token_ids: tuple[int, ...]) -> FloatRows:
        """RMS-normalised hidden states at the cut: the file's final norm has weight one."""
        return self._below_cut.embeddings(token_ids)


def open_runtime(job: Job) -> LlamaRuntime:
    """Options: `shallow`, `deep`, `below_cut`: GGUF files."""
    tokens = max(map(len, job.windows))
    contexts = [
        _Context(job.options[name], tokens=tokens, threads=job.threads, embeddings=name == "below_cut")
        for name in ("shallow", "deep", "below_cut")
    ]
    return LlamaRuntime(*contexts)
