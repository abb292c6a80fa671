"""GGUF files read by `ptq-worker convert`: our own, and those of llama.cpp's own quantizer.

Ours must come back as the job's records; llama.cpp's as GGUF with the same tensors, and as affine with the values that
the gguf package decodes. What is rebuilt of config.json and tokenizer.json is held against the originals.
"""

import ctypes
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import llama_cpp  # noqa: E402
from gguf_output_test import make_model, record_values, unpaired  # noqa: E402

BUILD = pathlib.Path(os.environ["PTQ_BUILD_DIR"])
SOURCE = pathlib.Path(os.environ["PTQ_SOURCE_DIR"])
EXAMPLE = SOURCE / "examples" / "wikilm-llama-6m"


def worker(*arguments, code=0):
    done = subprocess.run([BUILD / "bin" / "ptq-worker", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def convert(source, formats, output, *more, code=0):
    return worker("convert", "--from", source, "--format", formats, "--output", output, *more, code=code)


def run_job(root, model, **changes):
    """A job in all formats asked for: {format: folder}."""
    spec = {"model": str(model), "algorithm": "rtn", "bits": 4, "group_size": 32, "device": "cpu",
            "format": "affine,gguf", **changes}
    root.mkdir(parents=True, exist_ok=True)
    (root / "job.json").write_text(json.dumps(spec))
    worker("run", "--spec", root / "job.json", "--output", root / "job")
    return root / "job"


def tensors_of(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def same_tensors(ours, theirs, norms_beside_one=False):
    """`norms_beside_one`: the file has 1 + weight in float32, which rounds the smallest weights of norms."""
    ours, theirs = tensors_of(ours), tensors_of(theirs)
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        mine = ours[name]
        if norms_beside_one and name.endswith("norm.weight"):
            mine, tensor = mine.float() + 1, tensor.float() + 1
        assert mine.dtype == tensor.dtype and torch.equal(mine, tensor), name


def alone(file, folder):
    """The file without the config.json and tokenizer that may lie beside it."""
    folder.mkdir()
    return shutil.copy(file, folder / "model.gguf")


SCHEMES = {"Q8_0": {"bits": 8}, "Q4_0": {"bits": 4}, "Q5_0": {"bits": 5}, "Q4_1": {"bits": 4, "asymmetric": True},
           "Q5_1": {"bits": 5, "asymmetric": True}}


@pytest.mark.parametrize("kind", SCHEMES)
def test_our_files_come_back_as_the_jobs_records(tmp_path, kind):
    job = run_job(tmp_path, EXAMPLE, **SCHEMES[kind], rule=["model.layers.2.mlp.down_proj:skip"])
    reader = gguf.GGUFReader(job / "gguf" / "model.gguf")
    assert {t.name: t.tensor_type.name for t in reader.tensors}["blk.1.attn_q.weight"] == kind
    file = alone(job / "gguf" / "model.gguf", tmp_path / "alone")
    convert(file, "affine,gguf", tmp_path / "back")
    same_tensors(tmp_path / "back" / "affine", job / "affine")
    assert (tmp_path / "back" / "gguf" / "model.gguf").read_bytes() == file.read_bytes()


def test_the_tokenizer_gives_the_same_ids(tmp_path):
    job = run_job(tmp_path, EXAMPLE)
    convert(alone(job / "gguf" / "model.gguf", tmp_path / "alone"), "compressed-tensors", tmp_path / "back")
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    theirs = transformers.AutoTokenizer.from_pretrained(EXAMPLE)
    for text in ["", " ", "Hello, World!  two\n\nlines\r\n", "It's 1234567 o'clock, they'LL see", "naïve — Ωμέγα 漢字 🙂",
                 "<|begin_of_text|>x<|end_of_text|>", (SOURCE / "examples" / "evaluation.txt").read_text()[:3000]]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
        assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)


REBUILT = ["llama3_rope", "llama_biases", "llama_linear_rope", "llama_yarn", "mistral", "qwen2", "qwen3", "gemma2",
           "gemma3"]


@pytest.mark.parametrize("name", REBUILT)
def test_the_rebuilt_config_computes_the_same(tmp_path, name):
    """Logits of transformers with the plain weights of either: those of the job, and those out of the GGUF file."""
    config = make_model(tmp_path / "model", name)
    job = run_job(tmp_path, tmp_path / "model", bits=8, format="affine,gguf,dequantized")
    convert(alone(job / "gguf" / "model.gguf", tmp_path / "alone"), "affine,dequantized", tmp_path / "back")
    same_tensors(tmp_path / "back" / "affine", job / "affine", norms_beside_one="gemma" in name)
    ids = torch.randint(0, config.vocab_size, (1, 200), generator=torch.Generator().manual_seed(3))
    logits = []
    for folder in (job / "dequantized", tmp_path / "back" / "dequantized"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits.append(model(ids).logits)
    assert torch.equal(*logits)


BY_CONFIG = ["phi3", "olmo2", "granite", "starcoder2", "gpt_neox", "gpt2", "mixtral", "qwen2_moe", "qwen3_moe"]


@pytest.mark.parametrize("name", BY_CONFIG)
def test_other_families_need_their_config(tmp_path, name):
    make_model(tmp_path / "model", name)
    job = run_job(tmp_path, tmp_path / "model", bits=8, format="gguf" if name == "gpt2" else "affine,gguf")
    file = alone(next(job.rglob("model.gguf")), tmp_path / "alone")
    refused = convert(file, "gguf", tmp_path / "refused", code=2)
    assert "config.json" in refused.stderr and "--config" in refused.stderr
    convert(file, "gguf", tmp_path / "back", "--config", tmp_path / "model")
    assert (tmp_path / "back" / "model.gguf").read_bytes() == file.read_bytes()
    # The same with config.json beside the file.
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "alone")
    if name != "gpt2":
        convert(tmp_path / "alone", "affine", tmp_path / "beside")
        same_tensors(tmp_path / "beside", job / "affine")


def test_a_config_of_another_model_is_refused_by_the_key(tmp_path):
    job = run_job(tmp_path, EXAMPLE, format="gguf")
    config = json.loads((EXAMPLE / "config.json").read_text())
    for key, value, reason in [
            ("rms_norm_eps", 1e-6, "llama.attention.layer_norm_rms_epsilon"),
            ("num_key_value_heads", 4, "llama.attention.head_count_kv"),
            ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}, "llama.rope.freq_base"),
            ("model_type", "qwen2", 'general.architecture is "llama"')]:
        (tmp_path / "config.json").write_text(json.dumps(
            config | {key: value} | ({"architectures": ["Qwen2ForCausalLM"]} if value == "qwen2" else {})))
        refused = convert(job / "model.gguf", "affine", tmp_path / "out", "--config", tmp_path, code=2)
        assert reason in refused.stderr, refused.stderr


# --- llama.cpp's own files ------------------------------------------------------------------------

class QuantizeParameters(ctypes.Structure):
    """The beginning of llama_model_quantize_params, which llama.h has kept, and room for the rest."""
    _fields_ = [("threads", ctypes.c_int32), ("file_type", ctypes.c_int32), ("output_type", ctypes.c_int32),
                ("embedding_type", ctypes.c_int32), ("rest", ctypes.c_uint64 * 32)]


FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q4_K": 15}  # enum llama_ftype


def permuted(weight, heads):
    """Rows in llama.cpp's rotary order, as its converter makes them."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A bfloat16 Llama, and its float16 GGUF file by the gguf package's writer."""
    root = tmp_path_factory.mktemp("peer")
    torch.manual_seed(6)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, rms_norm_eps=1e-5)
    model = transformers.LlamaForCausalLM(config).to(torch.float16)
    writer = gguf.GGUFWriter(root / "f16.gguf", "llama")
    writer.add_name("Tiny peer")
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(320)
    writer.add_languages(["en"])
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + ["th", "he"] + [f"<extra_{i}>" for i in range(61)] + ["<end>"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 258 + [4] * 61 + [3])
    writer.add_token_merges(["t h", "h e"])
    writer.add_eos_token_id(319)
    state = model.state_dict()
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for key, tensor in state.items():
        module = key.removesuffix(".weight")
        name = outer.get(module)
        if name is None:
            _, _, layer, rest = module.split(".", 3)
            name = f"blk.{layer}.{names[rest]}"
        data = tensor.numpy()
        if name.endswith(("attn_q", "attn_k")):
            data = permuted(data, 4 if name.endswith("q") else 2)
        writer.add_tensor(name + ".weight", data.astype(np.float32) if data.ndim == 1 else data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return root


def quantize(peer, kind, **types):
    """llama.cpp's file of that type; the embedding and the head of the types given, or llama.cpp's choice."""
    library = llama_cpp.llama()
    library.llama_model_quantize_default_params.restype = QuantizeParameters
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(QuantizeParameters)]
    library.llama_model_quantize.restype = ctypes.c_uint32
    parameters = library.llama_model_quantize_default_params()
    parameters.threads, parameters.file_type = 1, FILE_TYPES[kind]
    for name, value in types.items():
        setattr(parameters, name, value)
    path = peer / f"{kind}_{'_'.join(map(str, types.values()))}.gguf"
    status = library.llama_model_quantize(str(peer / "f16.gguf").encode(), str(path).encode(), ctypes.byref(parameters))
    assert status == 0
    return path


PLAIN = {"output_type": 1, "embedding_type": 1}  # float16


def same_gguf(ours, theirs):
    ours, theirs = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in (ours, theirs))
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        assert ours[name].tensor_type == tensor.tensor_type, name
        assert np.array_equal(np.asarray(ours[name].data).view(np.uint8), np.asarray(tensor.data).view(np.uint8)), name


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0"])
def test_llama_cpps_own_files_come_back_the_same(peer, kind, tmp_path):
    path = quantize(peer, kind, **PLAIN)
    convert(alone(path, tmp_path / "alone"), "gguf,affine", tmp_path / "out")
    same_gguf(tmp_path / "out" / "gguf" / "model.gguf", path)
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    records = tensors_of(tmp_path / "out" / "affine")
    for module, name, heads in [("self_attn.q_proj", "attn_q", 4), ("self_attn.k_proj", "attn_k", 2),
                                ("mlp.down_proj", "ffn_down", 0)]:
        tensor = tensors[f"blk.1.{name}.weight"]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if heads:
            values = unpaired(values, heads)
        assert np.array_equal(record_values(records, f"model.layers.1.{module}"), values), module
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out" / "affine")
    assert (config.model_type, config.rms_norm_eps, config.num_key_value_heads) == ("llama", 1e-5, 2)
    assert config.eos_token_id == 319 and config.tie_word_embeddings is False and config.dtype == torch.float16
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "affine")
    assert tokenizer("the<extra_3>e<end>")["input_ids"] == [
        tokenizer.convert_tokens_to_ids(token) for token in ["th", "e", "<extra_3>", "e", "<end>"]]


def test_a_quantized_embedding_keeps_its_values(peer, tmp_path):
    path = quantize(peer, "Q8_0")
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    done = convert(path, "affine", tmp_path / "out")
    assert "token_embd.weight, output.weight are quantized outside" in done.stderr + done.stdout
    ours = tensors_of(tmp_path / "out")
    for name, module in (("token_embd.weight", "model.embed_tokens.weight"), ("output.weight", "lm_head.weight")):
        values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert ours[module].dtype == torch.float32 and np.array_equal(ours[module].numpy(), values)


def test_what_no_record_holds_is_refused_by_its_tensor(peer, tmp_path):
    refused = convert(quantize(peer, "Q4_1", **PLAIN), "affine", tmp_path / "out", code=2)
    assert "Q4_1 block" in refused.stderr and "is no multiple of its scale" in refused.stderr
    assert "model.layers.0" in refused.stderr
    refused = convert(quantize(peer, "Q4_K", **PLAIN), "affine", tmp_path / "out", code=2)
    assert re.search(r'blk\.0\.\w+\.weight"? is Q[46]_K, which no record holds', refused.stderr), refused.stderr
    refused = convert(peer / "f16.gguf", "affine", tmp_path / "out", code=2)
    assert "no linear layer of the blocks is quantized" in refused.stderr
    whole = (peer / "f16.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:len(whole) // 2])
    assert "is not within the file" in convert(tmp_path / "cut.gguf", "affine", tmp_path / "out", code=2).stderr


def test_a_folder_with_several_files_asks_for_one(peer, tmp_path):
    quantize(peer, "Q8_0", **PLAIN)
    assert "name one of them" in convert(peer, "affine", tmp_path / "out", code=2).stderr


def test_a_sentencepiece_tokenizer_comes_back(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("\u2581?[^\u2581]+"), "isolated")
    text = (SOURCE / "examples" / "evaluation.txt").read_text()
    tokenizer.train_from_iterator(text[:60000].splitlines(keepends=True), tokenizers.trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<unk>", "<end>"] + [f"<0x{i:02X}>" for i in range(256)],
        limit_alphabet=100, show_progress=False))
    state = json.loads(tokenizer.to_str())
    state["pre_tokenizer"] = None
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    model = tmp_path / "model"
    config = transformers.LlamaConfig(vocab_size=1600, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                                      num_attention_heads=2, num_key_value_heads=2)
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(model)
    (model / "tokenizer.json").write_text(json.dumps(state))
    (model / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "bos_token": "<end>"}))
    job = run_job(tmp_path, model, format="gguf")
    convert(alone(job / "model.gguf", tmp_path / "alone"), "gptq", tmp_path / "back")
    theirs = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    for piece in ["Hello, World! two", "naïve 漢字 🙂 and 1234", "  two  spaces", "word " * 20, "x<end>y", text[:1000]]:
        assert ours.encode(piece).ids == theirs.encode(piece).ids, piece
