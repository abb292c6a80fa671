"""GGUF's K-quants in the gguf package and in llama.cpp itself, from jobs as users start them.

The model is the example's, widened to float32: the dequantized output is then the records' values without a rounding.
"""

import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import llama_cpp  # noqa: E402

WORKER = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"
SOURCE = pathlib.Path(os.environ["PTQ_SOURCE_DIR"])
EXAMPLE = SOURCE / "examples" / "wikilm-llama-6m"
CALIBRATED = {"calibration": str(SOURCE / "examples" / "calibration.jsonl"), "samples": 16, "sequence_length": 256}
TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}


def write_job(root, model, **spec):
    root.mkdir(parents=True, exist_ok=True)
    (root / "job.json").write_text(json.dumps({
        "model": str(model), "algorithm": "rtn", "device": "cpu", "format": "gguf,dequantized", **spec}))
    return [WORKER, "run", "--spec", root / "job.json", "--output", root / "out"]


def run_job(root, model, **spec):
    """The folder of the result."""
    result = subprocess.run(write_job(root, model, **spec), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout[-2000:]
    return root / "out"


def refusal(root, model, **spec):
    result = subprocess.run(write_job(root, model, **spec), capture_output=True, text=True)
    assert result.returncode != 0
    return json.loads(result.stdout.splitlines()[-1])["message"]


def unpaired(values, heads):
    """Rows in the order of the checkpoint, out of llama.cpp's rotary order."""
    rows = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def weights_of(folder):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def check_bits(out, heads=4, kv_heads=2):
    """Every quantized tensor of the file has the bits of the dequantized weights; the types by tensor."""
    weights = weights_of(out / "dequantized")
    types = {}
    for tensor in gguf.GGUFReader(out / "gguf" / "model.gguf").tensors:
        if not tensor.name.startswith("blk.") or "norm" in tensor.name:
            continue
        _, layer, name, _ = tensor.name.split(".")
        module = {gguf_name: module for module, gguf_name in NAMES.items()}[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if name in ("attn_q", "attn_k"):
            values = unpaired(values, heads if name == "attn_q" else kv_heads)
        expected = weights[f"model.layers.{layer}.{module}.weight"].numpy()
        assert expected.dtype == np.float32
        if tensor.tensor_type.name != "Q5_1":  # whose minimum is rounded
            assert np.array_equal(np.ascontiguousarray(values).view(np.uint32), expected.view(np.uint32)), tensor.name
        types[f"{layer}.{name}"] = tensor.tensor_type.name
    return types


def difference_of(out, tokens=200):
    """Total variation between llama.cpp with the file and transformers with the dequantized weights."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(EXAMPLE)
    ids = tokenizer((SOURCE / "examples" / "evaluation.txt").read_text()[:4000])["input_ids"][:tokens]
    assert len(ids) == tokens
    reference = transformers.AutoModelForCausalLM.from_pretrained(out / "dequantized", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = reference(torch.tensor([ids])).logits[0].numpy()
    with llama_cpp.Model(out / "gguf" / "model.gguf") as model:
        return llama_cpp.total_variation(model.logits(ids), logits)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for path in EXAMPLE.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder)
    save_file({name: tensor.float() for name, tensor in load_file(EXAMPLE / "model.safetensors").items()},
              folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return folder


@pytest.fixture(scope="module", params=TYPES)
def quantized(request, model, tmp_path_factory):
    return run_job(tmp_path_factory.mktemp(request.param), model, scheme=request.param.lower()), request.param


def test_the_gguf_package_decodes_our_records(quantized):
    out, kind = quantized
    types = check_bits(out)
    assert len(types) == 42 and set(types.values()) == {kind}
    report = json.loads((out / "report.json").read_text())
    assert {m["scheme"] for block in report["blocks"] for m in block["modules"]} == {kind}
    bytes_of_block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    assert report["size"]["bits_per_weight"] == bytes_of_block * 8 / 256
    verdicts = {v["loader"]: v["verdict"] for v in report["loaders"][0]["loaders"]}
    assert report["loaders"][0]["format"] == "gguf" and verdicts["llama.cpp"] == "loads", verdicts


def test_llama_cpp_predicts_what_the_dequantized_model_does(quantized):
    out, kind = quantized
    difference = difference_of(out)
    print(f"{kind}: total variation {difference:.4f}")
    assert difference < 0.03


def by_llama_cpp(kind, weight):
    """What llama.cpp's own quantizer makes of a float32 matrix without importance, decoded."""
    ggml = llama_cpp.ggml()
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    number = gguf.GGMLQuantizationType[kind]
    rows, columns = weight.shape
    data = np.zeros((rows, columns // 256 * gguf.GGML_QUANT_SIZES[number][1]), np.uint8)
    ggml.ggml_quantize_init(int(number))
    written = ggml.ggml_quantize_chunk(
        int(number), weight.ctypes.data_as(ctypes.c_void_p), data.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0),
        ctypes.c_int64(rows), ctypes.c_int64(columns), None)
    assert written == data.size
    return gguf.quants.dequantize(data, number)


def test_rtn_is_no_worse_than_llama_cpps_quantizer(quantized, model):
    out, kind = quantized
    source = weights_of(model)
    ours = theirs = 0.0
    for name, values in weights_of(out / "dequantized").items():
        if not name.startswith("model.layers.") or "norm" in name:
            continue
        weight = source[name].numpy()
        own = ((values.numpy() - weight) ** 2).sum()
        other = ((by_llama_cpp(kind, weight) - weight) ** 2).sum()
        assert own <= other, name
        ours += own
        theirs += other
    print(f"{kind}: squared error {ours / theirs:.3f} of llama.cpp's")


@pytest.mark.parametrize("algorithm", ["opt-rtn", "gptq"])
def test_other_algorithms_and_a_rule(model, tmp_path, algorithm):
    out = run_job(tmp_path, model, algorithm=algorithm, scheme="Q3_K", **CALIBRATED,
                  rule=[r".*\.v_proj:scheme=Q6_K", r".*\.0\.mlp\.down_proj:bits=8,group_size=32",
                        r".*\.1\.mlp\.down_proj:skip"])
    types = check_bits(out)
    assert types["2.attn_v"] == "Q6_K" and types["0.ffn_down"] == "Q8_0" and types["1.ffn_down"] == "F32"
    assert types["2.ffn_down"] == "Q3_K"
    assert difference_of(out) < 0.03


@pytest.mark.parametrize("preset, expected", [
    ("Q2_K", {"attn_q": {"Q2_K"}, "attn_v": {"Q4_K"}, "attn_output": {"Q3_K"}, "ffn_down": {"Q3_K"}}),
    ("Q4_K_M", {"attn_q": {"Q4_K"}, "attn_v": {"Q4_K", "Q6_K"}, "ffn_down": {"Q4_K", "Q6_K"}, "ffn_up": {"Q4_K"}}),
])
def test_mixes(model, tmp_path, preset, expected):
    out = run_job(tmp_path, model, preset=preset)
    types = check_bits(out)
    for name, kinds in expected.items():
        assert {kind for key, kind in types.items() if key.endswith("." + name)} == kinds, name
    if preset == "Q4_K_M":  # blocks 2 of the six, and the last one
        assert [b for b in range(6) if types[f"{b}.ffn_down"] == "Q6_K"] == [2, 5]
    assert difference_of(out) < 0.03


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """Rows of 320 in down_proj."""
    folder = tmp_path_factory.mktemp("ragged")
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512)
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("preset, kind", [("Q3_K_M", "Q5_0"), ("Q4_K_S", "Q5_0"), ("Q5_K_M", "Q8_0"), ("Q6_K", "Q8_0")])
def test_mixes_fall_back_where_super_blocks_do_not_fit(ragged, tmp_path, preset, kind):
    types = check_bits(run_job(tmp_path, ragged, preset=preset))
    assert types["1.ffn_down"] == kind and types["1.ffn_up"] == preset[:4]


def test_what_does_not_fit_is_refused_by_name(ragged, model, tmp_path):
    message = refusal(tmp_path / "ragged", ragged, scheme="Q4_K")
    assert "Q4_K has super-blocks of 256 columns, which do not divide in_features 320" in message
    assert "model.layers.*.mlp.down_proj" in message and "--rule" in message
    advice = message.split("--rule '")[1].split("'")[0]
    types = check_bits(run_job(tmp_path / "advised", ragged, scheme="Q4_K", rule=[advice]))
    assert types["0.ffn_down"] == "Q5_0" and types["0.ffn_up"] == "Q4_K"
    for name in ("affine", "compressed-tensors", "gptq", "awq", "auto-round"):
        message = refusal(tmp_path / name, model, scheme="Q4_K", format=name)
        assert f"{name} can't hold model.layers.0.self_attn.q_proj" in message and "Q4_K" in message
    message = refusal(tmp_path / "tuned", model, scheme="Q4_K", algorithm="auto-round", **CALIBRATED)
    assert "auto-round tunes no K-quants; choose algorithm gptq, opt-rtn or rtn" in message


def test_a_resumed_job_writes_the_same_file(model, tmp_path):
    spec = {"algorithm": "gptq", "preset": "Q4_K_M", **CALIBRATED}
    whole = run_job(tmp_path / "whole", model, **spec)
    command = write_job(tmp_path / "cut", model, **spec)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if json.loads(line)["type"] == "block_done":
                process.kill()
                break
    events = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    started = next(e for e in map(json.loads, events) if e["type"] == "started")
    assert started["blocks_resumed"] >= 1
    for name in ("gguf/model.gguf", "dequantized/model-00003-of-00008.safetensors"):
        assert (tmp_path / "cut" / "out" / name).read_bytes() == (whole / name).read_bytes(), name
