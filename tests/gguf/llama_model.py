"""A model in llama.cpp, through the C functions that the prebuilt xllamacpp exports.

The structs are those of ``include/llama.h`` (commit 0c1e57098). Their defaults are checked, so that
another layout in a later version is told from a wrong answer.
"""

import ctypes
from functools import cache

import numpy as np

from tests.gguf.llamacpp import library

c = ctypes
Log = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)


class ModelParams(c.Structure):
    _fields_ = (
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
        ("room", c.c_char * 64),
    )


class ContextParams(c.Structure):
    _fields_ = (
        *((name, c.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")),
        *((name, c.c_uint32) for name in ("n_rs_seq", "n_outputs_max", "n_outputs_max_per_seq")),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        *((name, c.c_int) for name in ("ctx_type", "rope_scaling_type", "pooling_type")),
        ("attention_type", c.c_int),
        ("flash_attn_type", c.c_int),
        *((name, c.c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor")),
        *((name, c.c_float) for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("abort_callback", c.c_void_p),
        ("abort_callback_data", c.c_void_p),
        ("flags", c.c_bool * 6),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
        ("room", c.c_char * 64),
    )


class Batch(c.Structure):
    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


@cache
def functions():
    lib = library()
    returns = {
        "llama_model_default_params": ModelParams,
        "llama_context_default_params": ContextParams,
        "llama_model_load_from_file": c.c_void_p,
        "llama_init_from_model": c.c_void_p,
        "llama_model_get_vocab": c.c_void_p,
        "llama_get_memory": c.c_void_p,
        "llama_get_logits_ith": c.POINTER(c.c_float),
        "llama_vocab_n_tokens": c.c_int32,
        "llama_tokenize": c.c_int32,
        "llama_decode": c.c_int32,
        "llama_model_free": None,
        "llama_free": None,
        "llama_batch_free": None,
        "llama_memory_clear": None,
        "llama_batch_init": Batch,
    }
    takes = {
        "llama_model_load_from_file": [c.c_char_p, ModelParams],
        "llama_init_from_model": [c.c_void_p, ContextParams],
        "llama_model_get_vocab": [c.c_void_p],
        "llama_get_memory": [c.c_void_p],
        "llama_memory_clear": [c.c_void_p, c.c_bool],
        "llama_get_logits_ith": [c.c_void_p, c.c_int32],
        "llama_vocab_n_tokens": [c.c_void_p],
        "llama_tokenize": [
            *(c.c_void_p, c.c_char_p, c.c_int32),
            *(c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool),
        ],
        "llama_decode": [c.c_void_p, Batch],
        "llama_batch_init": [c.c_int32] * 3,
        "llama_batch_free": [Batch],
        "llama_model_free": [c.c_void_p],
        "llama_free": [c.c_void_p],
    }
    for name, kind in returns.items():
        getattr(lib, name).restype = kind
        getattr(lib, name).argtypes = takes.get(name, [])
    lib.quiet = Log(lambda *_: None)  # kept, or the C would call what is gone
    lib.llama_log_set.argtypes = [Log, c.c_void_p]
    lib.llama_log_set(lib.quiet, None)
    lib.llama_backend_init()
    params = lib.llama_context_default_params()
    # F16 twice, and 512 tokens: what llama.h says. Else the structs above are of another version.
    assert (params.type_k, params.type_v, params.n_ctx, params.n_batch) == (1, 1, 512, 2048)
    assert params.yarn_beta_fast in (-1, 32)
    return lib


class LlamaModel:
    """A GGUF file in llama.cpp, on one thread, with keys and values kept in float32.

    Args:
        path: the file.
        context: tokens.
        vocabulary_only: read the tokenizer alone.
    """

    def __init__(self, path, context=512, vocabulary_only=False):
        lib = functions()
        params = lib.llama_model_default_params()
        params.n_gpu_layers, params.vocab_only = 0, vocabulary_only
        params.check_tensors = not vocabulary_only
        params.use_extra_bufts = False
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, f"llama.cpp does not load {path}"
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.context, self.handle = context, None
        if not vocabulary_only:
            params = lib.llama_context_default_params()
            params.n_ctx = params.n_batch = params.n_ubatch = context
            params.n_threads = params.n_threads_batch = 1
            params.type_k = params.type_v = 0
            params.flash_attn_type = 0
            self.handle = lib.llama_init_from_model(self.model, params)
            assert self.handle, f"llama.cpp makes no context for {path}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.handle:
            functions().llama_free(self.handle)
        functions().llama_model_free(self.model)

    def tokenize(self, text, special=True):
        """Token ids; ``special`` adds BOS and EOS as the file says."""
        raw = text.encode()
        out = (c.c_int32 * (len(raw) + 16))()
        n = functions().llama_tokenize(self.vocab, raw, len(raw), out, len(out), special, False)
        assert n >= 0
        return list(out[:n])

    def logits(self, ids):
        """float32 (len(ids), vocabulary)."""
        lib = functions()
        lib.llama_memory_clear(lib.llama_get_memory(self.handle), True)
        return self._decode(ids, 0)

    def _decode(self, ids, start):
        lib = functions()
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        assert lib.llama_decode(self.handle, batch) == 0
        lib.llama_batch_free(batch)
        size = lib.llama_vocab_n_tokens(self.vocab)
        rows = [
            np.ctypeslib.as_array(lib.llama_get_logits_ith(self.handle, i), (size,)).copy()
            for i in range(len(ids))
        ]
        return np.stack(rows)

    def continue_greedily(self, ids, count):
        """``count`` token ids, each the likeliest."""
        row, ids = self.logits(ids)[-1], list(ids)
        new = []
        for _ in range(count):
            new.append(int(row.argmax()))
            row = self._decode(new[-1:], len(ids))[-1]
            ids.append(new[-1])
        return new
