"""llama.cpp itself, by the prebuilt libraries of npm's node-llama-cpp, called with ctypes.

`tools/setup.sh peers` installs them under .venv/npm (deploy/npm-peers.txt). Only the C functions and the one structure
whose layout llama.h has kept for years are used; the structures of parameters are passed on as they come.
"""

import ctypes
import functools
import os
import pathlib

import numpy as np

FOLDER = pathlib.Path(os.environ["PTQ_SOURCE_DIR"]) / (
    ".venv/npm/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64")


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class Parameters(ctypes.Structure):
    """Larger than llama.cpp's own structures, which are returned and passed in memory."""
    _fields_ = [("words", ctypes.c_uint32 * 128)]


def library(name):
    found = sorted(FOLDER.glob(f"lib{name}*.so"))
    assert found, f"llama.cpp is not installed in {FOLDER}: run `tools/setup.sh peers`"
    return ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)


@functools.cache
def ggml():
    return library("ggml-base")


@functools.cache
def llama():
    ggml()
    backends = library("ggml.")
    backends.ggml_backend_load_all_from_path(str(FOLDER).encode())
    lib = library("llama.")
    pointer = ctypes.c_void_p
    for name, result, arguments in [
        ("llama_model_default_params", Parameters, []),
        ("llama_context_default_params", Parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Parameters]),
        ("llama_init_from_model", pointer, [pointer, Parameters]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_vocab_get_add_bos", ctypes.c_bool, [pointer]),
        ("llama_tokenize", ctypes.c_int32,
         [pointer, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32,
          ctypes.c_bool, ctypes.c_bool]),
        ("llama_batch_init", Batch, [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
        ("llama_batch_free", None, [Batch]),
        ("llama_decode", ctypes.c_int32, [pointer, Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, ctypes.c_int32]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("llama_log_set", None, [pointer, pointer]),
    ]:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_backend_init()
    return lib


class Model:
    """A GGUF file in llama.cpp, on the CPU."""

    def __init__(self, path, log=False):
        self.lib = llama()
        if not log:
            self.silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
            self.lib.llama_log_set(ctypes.cast(self.silence, ctypes.c_void_p), None)
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        assert self.model, f"llama.cpp does not load {path}"
        self.vocab = self.lib.llama_model_get_vocab(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lib.llama_model_free(self.model)

    def tokenize(self, text, special=True):
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), ids, len(ids), special, True)
        assert count >= 0
        return list(ids[:count])

    def logits(self, ids, context=512):
        """[tokens, vocabulary], float32, of one sequence; in a context of so many tokens."""
        parameters = self.lib.llama_context_default_params()
        parameters.words[0] = context  # n_ctx
        context = self.lib.llama_init_from_model(self.model, parameters)
        assert context
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        assert self.lib.llama_decode(context, batch) == 0
        size = self.lib.llama_vocab_n_tokens(self.vocab)
        rows = [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(context, i), (size,)).copy()
                for i in range(len(ids))]
        self.lib.llama_batch_free(batch)
        self.lib.llama_free(context)
        return np.stack(rows)


def total_variation(logits, reference):
    """Mean over positions of half the L1 distance between the two next-token distributions."""
    def probabilities(values):
        values = np.exp(values - values.max(axis=1, keepdims=True).astype(np.float64))
        return values / values.sum(axis=1, keepdims=True)
    return 0.5 * np.abs(probabilities(logits) - probabilities(reference)).sum(axis=1).mean()
