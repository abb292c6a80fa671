"""The gguf output in the gguf package and in llama.cpp itself.

Tensors: what the gguf package decodes has the bits of our records. Models: next-token distributions of llama.cpp
against transformers with the dequantized weights, and the same tokens for the same text. The C++ side is
tests/interop/format_tool.cc.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import llama_cpp  # noqa: E402

TOOL = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "tests" / "format_tool"
WORKER = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"
SOURCE = pathlib.Path(os.environ["PTQ_SOURCE_DIR"])
EXAMPLE = SOURCE / "examples" / "wikilm-llama-6m"

SCHEMES = {
    "Q8_0": {"bits": 8, "group_size": 32, "symmetric": True},
    "Q4_0": {"bits": 4, "group_size": 32, "symmetric": True},
    "Q4_1": {"bits": 4, "group_size": 64, "symmetric": False},
    "Q5_0": {"bits": 5, "group_size": -1, "symmetric": True},
    "Q5_1": {"bits": 5, "group_size": 32, "symmetric": False},
}
HAS_MINIMUM = ("Q4_1", "Q5_1")


def run_tool(root, model, default, modules=None):
    root.mkdir(parents=True, exist_ok=True)
    spec = {"model": str(model), "output": str(root), "formats": ["gguf"], "default": default,
            "modules": modules or {}}
    (root / "spec.json").write_text(json.dumps(spec))
    return subprocess.run([TOOL, "export", root / "spec.json"], capture_output=True, text=True)


def write_gguf(root, model, default, modules=None):
    """The file, and the records that the affine format, which is written beside it, keeps."""
    result = run_tool(root, model, default, modules)
    assert result.returncode == 0, result.stderr
    records = {}
    for path in (root / "affine").glob("*.safetensors"):
        records |= {name: tensor for name, tensor in load_file(path).items() if "._weight_" in name}
    return root / "gguf" / "model.gguf", records


def spread(values, columns):
    return np.repeat(values, columns // values.shape[1], axis=1)


def record_values(records, module, minimum_as_half=False):
    """[N, K] float32: what a record stands for; with `minimum_as_half` as Q4_1 and Q5_1 have it."""
    codes = records[module + "._weight_qdata"].numpy()
    scale = records[module + "._weight_scale"].float().numpy()
    zero = records[module + "._weight_zero_point"].numpy().astype(np.int32)
    rows, columns = codes.shape
    scale, zero = (np.repeat(t, rows // t.shape[0], axis=0) for t in (scale, zero))
    if not minimum_as_half:
        return (codes - spread(zero, columns)).astype(np.float32) * spread(scale, columns)
    half = 8 if minimum_as_half == "Q4_1" else 16
    minimum = (-(zero + half)).astype(np.float32) * scale
    minimum = minimum.astype(np.float16).astype(np.float32)
    return (codes.astype(np.int32) + half).astype(np.float32) * spread(scale, columns) + spread(minimum, columns)


def same_bits(a, b):
    return a.shape == b.shape and np.array_equal(np.ascontiguousarray(a).view(np.uint32),
                                                 np.ascontiguousarray(b).view(np.uint32))


def unpaired(values, heads):
    """Rows in the order of the checkpoint, out of llama.cpp's rotary order."""
    rows = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


@pytest.fixture(scope="module", params=SCHEMES, ids=str)
def example(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    path, records = write_gguf(root, EXAMPLE, SCHEMES[request.param])
    return path, records, request.param


def test_the_gguf_package_decodes_our_records(example):
    path, records, kind = example
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    source = load_file(EXAMPLE / "model.safetensors")
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}
    for layer in range(6):
        for module, name in names.items():
            tensor = tensors.pop(f"blk.{layer}.{name}.weight")
            assert tensor.tensor_type.name == kind
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if name in ("attn_q", "attn_k"):
                values = unpaired(values, 4 if name == "attn_q" else 2)
            expected = record_values(records, f"model.layers.{layer}.{module}", kind in HAS_MINIMUM and kind)
            assert same_bits(values, expected), (layer, module)
        for module, name in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
            values = tensors.pop(f"blk.{layer}.{name}.weight").data
            assert np.array_equal(values, source[f"model.layers.{layer}.{module}.weight"].float().numpy())
    embedding = tensors.pop("token_embd.weight")
    assert embedding.tensor_type.name == "BF16"
    stored = source["model.embed_tokens.weight"].view(torch.int16).numpy()
    assert np.array_equal(embedding.data.view(np.int16).reshape(stored.shape), stored)
    assert np.array_equal(tensors.pop("output_norm.weight").data, source["model.norm.weight"].float().numpy())
    assert not tensors


def dequantized_model(folder, records, kind=None):
    """transformers' float32 model with the values of the records."""
    tensors = {}
    for path in pathlib.Path(folder).glob("*.safetensors"):
        tensors |= {name: tensor.float() for name, tensor in load_file(path).items()}
    for module in {name.removesuffix("._weight_qdata") for name in records if name.endswith("._weight_qdata")}:
        values = torch.from_numpy(record_values(records, module, kind in HAS_MINIMUM and kind))
        name = f"{module}.weight"
        # GPT-2's Conv1D has them the other way round; a square one shows it by being nearer.
        swapped = (tensors[name] - values.T).norm() < (tensors[name] - values).norm() if (
            values.shape[0] == values.shape[1]) else tensors[name].shape != values.shape
        tensors[name] = values.T.contiguous() if swapped else values
    with tempfile.TemporaryDirectory() as target:
        for path in pathlib.Path(folder).glob("*.json"):
            if "index" not in path.name:
                shutil.copy(path, target)
        save_file(tensors, f"{target}/model.safetensors", {"format": "pt"})
        return transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def evaluation_ids(tokenizer, count=200):
    return tokenizer((SOURCE / "examples" / "evaluation.txt").read_text()[:4000])["input_ids"][:count]


def test_llama_cpp_predicts_what_the_dequantized_model_does(example):
    path, records, kind = example
    tokenizer = transformers.AutoTokenizer.from_pretrained(EXAMPLE)
    ids = evaluation_ids(tokenizer)
    assert len(ids) == 200
    with llama_cpp.Model(path) as model:
        difference = llama_cpp.total_variation(model.logits(ids), logits_of(
            dequantized_model(EXAMPLE, records, kind), ids))
    print(f"{kind}: total variation {difference:.4f}")
    assert difference < 0.03


def test_llama_cpp_has_our_tokens(example):
    path, _, _ = example
    tokenizer = transformers.AutoTokenizer.from_pretrained(EXAMPLE)
    texts = ["", " ", "Hello, World!  two\n\nlines\r\n", "It's 1234567 o'clock, they'LL see", "naïve — Ωμέγα 漢字 🙂",
             "<|begin_of_text|>x<|end_of_text|>", (SOURCE / "examples" / "evaluation.txt").read_text()[:3000]]
    with llama_cpp.Model(path) as model:
        for text in texts:
            assert model.tokenize(text) == tokenizer(text)["input_ids"], text
    reader = gguf.GGUFReader(path)
    assert reader.fields["tokenizer.ggml.bos_token_id"].contents() == tokenizer.bos_token_id
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id


def test_transformers_loads_the_file(tmp_path):
    path, records = write_gguf(tmp_path, EXAMPLE, SCHEMES["Q8_0"])
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    reference = dict(dequantized_model(EXAMPLE, records).named_parameters())
    loaded = dict(model.named_parameters())
    assert sorted(loaded) == sorted(reference)
    for name, parameter in loaded.items():
        assert torch.equal(parameter.data, reference[name].data), name


def test_equal_inputs_give_equal_bytes(tmp_path):
    first, _ = write_gguf(tmp_path / "a", EXAMPLE, SCHEMES["Q4_0"])
    second, _ = write_gguf(tmp_path / "b", EXAMPLE, SCHEMES["Q4_0"])
    assert first.read_bytes() == second.read_bytes()


def test_mixed_schemes_and_modules_that_are_left_out(tmp_path):
    path, records = write_gguf(tmp_path, EXAMPLE, SCHEMES["Q4_0"], {
        "model.layers.0.mlp.down_proj": SCHEMES["Q8_0"], "model.layers.3.self_attn.q_proj": None})
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.3.attn_q.weight"] == "BF16"
    assert types["blk.1.ffn_down.weight"] == "Q4_0"
    ids = evaluation_ids(transformers.AutoTokenizer.from_pretrained(EXAMPLE))
    with llama_cpp.Model(path) as model:
        assert llama_cpp.total_variation(
            model.logits(ids), logits_of(dequantized_model(EXAMPLE, records), ids)) < 0.03


def test_a_job_and_a_conversion_write_the_same_file(tmp_path):
    def run(*arguments):
        subprocess.run([WORKER, *arguments], check=True, capture_output=True)

    spec = {"model": str(EXAMPLE), "algorithm": "rtn", "bits": 4, "group_size": 32, "device": "cpu"}
    for name, formats in (("job", "gguf"), ("records", "affine")):
        (tmp_path / f"{name}.json").write_text(json.dumps({**spec, "format": formats}))
        run("run", "--spec", tmp_path / f"{name}.json", "--output", tmp_path / name)
    run("convert", "--from", tmp_path / "records", "--format", "gguf", "--output", tmp_path / "converted")
    written = (tmp_path / "job" / "model.gguf").read_bytes()
    assert written == (tmp_path / "converted" / "model.gguf").read_bytes()
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "job" / "model.gguf").tensors}
    assert types["blk.5.ffn_up.weight"] == "Q4_0"


@pytest.mark.parametrize("scheme, reason", [
    ({"bits": 3, "group_size": 32}, "it has no type for 3 bits, symmetric"),
    ({"bits": 8, "group_size": 32, "symmetric": False}, "it has no type for 8 bits, asymmetric"),
    ({"bits": 4, "group_size": 16}, "a group of 16 columns does not fill its blocks of 32"),
])
def test_what_gguf_cannot_hold_is_refused(tmp_path, scheme, reason):
    result = run_tool(tmp_path, EXAMPLE, scheme)
    assert result.returncode != 0
    assert "gguf can't hold model.layers.0.self_attn.q_proj" in result.stderr and reason in result.stderr
    assert not (tmp_path / "gguf" / "model.gguf").exists()


SIZES = {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
GPT2 = {"vocab_size": 320, "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 512}

# name: configuration class, its arguments
FAMILIES = {
    "llama3_rope": ("LlamaConfig", {**SIZES, "tie_word_embeddings": False, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}),
    "llama_biases": ("LlamaConfig", {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 64}),
    "llama_linear_rope": ("LlamaConfig", {**SIZES, "rope_parameters": {
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama_yarn": ("LlamaConfig", {**SIZES, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}}),
    "mistral": ("MistralConfig", {**SIZES, "head_dim": 32, "sliding_window": 300}),
    "qwen2": ("Qwen2Config", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 64}),
    "gemma2": ("Gemma2Config", {**SIZES, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48}),
    "gemma3": ("Gemma3TextConfig", {**SIZES, "num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32,
                                    "sliding_window": 48}),
    "phi3": ("Phi3Config", {**SIZES, "pad_token_id": 0, "original_max_position_embeddings": 512}),
    "phi3_longrope": ("Phi3Config", {
        **SIZES, "pad_token_id": 0, "original_max_position_embeddings": 256, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + i / 20 for i in range(16)],
            "long_factor": [2.0 + i / 4 for i in range(16)], "original_max_position_embeddings": 256}}),
    "olmo2": ("Olmo2Config", {**SIZES, "tie_word_embeddings": True}),
    "granite": ("GraniteConfig", {**SIZES, "attention_multiplier": 0.2, "embedding_multiplier": 3.0,
                                  "residual_multiplier": 0.7, "logits_scaling": 0.7}),
    "starcoder2": ("Starcoder2Config", {**SIZES, "sliding_window": None}),
    "gpt_neox": ("GPTNeoXConfig", {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "gpt_neox_sequential": ("GPTNeoXConfig", {
        **{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, "use_parallel_residual": False}),
    "gpt2": ("GPT2Config", GPT2),
    "mixtral": ("MixtralConfig", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeConfig", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False,
                                     "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96}),
    "qwen3_moe": ("Qwen3MoeConfig", {**SIZES, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2,
                                     "norm_topk_prob": True, "moe_intermediate_size": 64}),
}


# Smaller where the head is the embedding, or a token would predict itself and nothing else.
EMBEDDING_STD = {"qwen2": 0.15, "olmo2": 0.15, "starcoder2": 0.15, "gpt2": 0.15, "gemma2": 0.1, "gemma3": 0.1}


def make_model(folder, name, dtype=torch.bfloat16):
    kind, arguments = FAMILIES[name]
    torch.manual_seed(4)
    config = getattr(transformers, kind)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config)
    is_norm = re.compile(r"(norm|ln_\w+)\.weight")
    for key, parameter in model.named_parameters():
        std = 0.1
        if "embed" in key or "wte" in key:
            std = EMBEDDING_STD.get(name, 0.6)
        torch.nn.init.normal_(parameter, std=std,
                              mean=1.0 if is_norm.search(key) and "gemma" not in name else 0.0)
    model.to(dtype).save_pretrained(folder)
    return config


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_in_llama_cpp(tmp_path, name):
    config = make_model(tmp_path / "model", name)
    path, records = write_gguf(tmp_path / "output", tmp_path / "model", SCHEMES["Q8_0"])
    ids = np.random.default_rng(2).integers(0, config.vocab_size, 200).tolist()
    reference = logits_of(dequantized_model(tmp_path / "model", records), ids)
    with llama_cpp.Model(path) as model:
        # llama.cpp takes longrope's long factors wherever the context is longer than the original one.
        difference = llama_cpp.total_variation(model.logits(ids, context=256), reference)
    sharpness = llama_cpp.total_variation(reference, np.zeros_like(reference))
    print(f"{name}: total variation {difference:.4f}, from the uniform distribution {sharpness:.2f}")
    assert sharpness > 0.3  # or nothing could be seen
    assert difference < 0.03


@pytest.mark.parametrize("kind, arguments, reason", [
    ("OPTConfig", {"vocab_size": 320, "hidden_size": 128, "ffn_dim": 256, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "word_embed_proj_dim": 128},
     "there are no names of llama.cpp here for model_type \"opt\""),
    ("LlamaConfig", {**SIZES, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
     "rope_parameters.rope_type: llama.cpp has no dynamic scaling"),
    ("Gemma2Config", {**SIZES, "head_dim": 32, "query_pre_attn_scalar": 64}, "the scale of attention's logits"),
    ("Gemma3TextConfig", {**SIZES, "head_dim": 32, "query_pre_attn_scalar": 32, "layer_types": [
        "full_attention", "sliding_attention", "sliding_attention"]}, "layer_types: its windows come in no regular"),
    ("Olmo2Config", {**SIZES, "attention_bias": True}, "q_proj.bias: llama.cpp's olmo2 has no place for it"),
    ("GPTNeoXConfig", {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "attention_bias": False}, "llama.cpp's gptneox needs biases"),
])
def test_models_that_llama_cpp_would_compute_otherwise_are_refused(tmp_path, kind, arguments, reason):
    config = getattr(transformers, kind)(**arguments)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    result = run_tool(tmp_path / "output", tmp_path / "model", SCHEMES["Q8_0"])
    assert result.returncode != 0 and reason in result.stderr, result.stderr
    assert not (tmp_path / "output" / "gguf" / "model.gguf").exists()


def split_of(regex):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(regex), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+@|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*@")
CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's name: what a tokenizer.json says, and whether it ignores merges
PRE_TOKENIZERS = {
    "gpt-2": (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "starcoder": (lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False)]), False),
    "llama-bpe": (lambda: split_of(f"{CONTRACTIONS}|{WORDS}|\\p{{N}}{{1,3}}{REST}"), True),
    "dbrx": (lambda: split_of(f"{CONTRACTIONS}|{WORDS}|\\p{{N}}{{1,3}}{REST}"), False),
    "qwen2": (lambda: split_of(f"{CONTRACTIONS}|{WORDS}|\\p{{N}}{REST}"), False),
    "gpt-4o": (lambda: split_of(CASED.replace("@", CONTRACTIONS + "?") + r"|\p{N}{1,3}" + CASED_REST), False),
    "tekken": (lambda: split_of(CASED.replace("@", "") + r"|\p{N}" + CASED_REST), True),
}
TEXTS = [" ", "Hello, World!  two\n\nlines\r\n", "It's 1234567 o'clock, they'LL see; CamelCaseWords/and ABCdef",
         "naïve — Ωμέγα 漢字 🙂 x²³", "tabs\t\tand   spaces \n ", "a<sep>b <sep> c<end>"]


def tokenizer_model(folder, tokenizer):
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "bos_token": "<end>"}))
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": 2048, "num_hidden_layers": 1})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path, _ = write_gguf(folder / "output", folder, SCHEMES["Q8_0"])
    return llama_cpp.Model(path)


def train(tokenizer, trainer):
    text = (SOURCE / "examples" / "evaluation.txt").read_text()[:60000] + "".join(TEXTS)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<sep>", special=False, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_llama_cpp_splits_text_as_the_pre_tokenizer_does(tmp_path, name):
    make, ignore_merges = PRE_TOKENIZERS[name]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = make()
    train(tokenizer, tokenizers.trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    with tokenizer_model(tmp_path, tokenizer) as model:
        reader = gguf.GGUFReader(tmp_path / "output" / "gguf" / "model.gguf")
        assert reader.fields["tokenizer.ggml.pre"].contents() == name
        for text in TEXTS + [(SOURCE / "examples" / "evaluation.txt").read_text()[:2000]]:
            assert model.tokenize(text, special=True) == tokenizer.encode(text).ids, text


@pytest.mark.parametrize("prefix", [True, False])
def test_llama_cpp_has_the_tokens_of_a_sentencepiece_model(tmp_path, prefix):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = tokenizers.normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = spaces if not prefix else tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), spaces])
    # Learns within words, as SentencePiece does; encodes without splitting, as it does too.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("\u2581?[^\u2581]+"), "isolated")
    train(tokenizer, tokenizers.trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<unk>", "<end>"] + [f"<0x{i:02X}>" for i in range(256)],
        limit_alphabet=100, show_progress=False))
    state = json.loads(tokenizer.to_str())
    state["pre_tokenizer"] = None
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    with tokenizer_model(tmp_path, tokenizer) as model:
        texts = ["Hello, World! two", "naïve 漢字 🙂 and 1234", "  two  spaces", "word " * 20,
                 (SOURCE / "examples" / "evaluation.txt").read_text()[:1000]]
        for text in texts:
            assert model.tokenize(text) == tokenizer.encode(text).ids, text
