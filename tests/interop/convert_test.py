"""`ptq-worker convert` on folders that other programs made: AutoRound's exports, and compressed-tensors' own compressor.

Each is read, written back to its own format, and must have the same tensors; written as affine it must decode to the
weights that the other program's file decodes to.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors import safe_open
from safetensors.torch import load_file, save_file

WORKER = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"
EXAMPLE = pathlib.Path(os.environ["PTQ_SOURCE_DIR"]) / "examples" / "wikilm-llama-6m"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, dtype=torch.bfloat16)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(EXAMPLE).save_pretrained(folder)
    return folder


def convert(folder, formats, output, code=0):
    done = subprocess.run([WORKER, "convert", "--from", folder, "--format", formats, "--output", output],
                          capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == code, done.stderr
    return events


def read(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def same_tensors(ours, theirs):
    ours, theirs = read(ours), read(theirs)
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


# A process of its own: AutoRound starts others, which import this file's process anew. (format, bits, symmetric)
AUTO_ROUND = """
import sys, torch
from auto_round import AutoRound
if __name__ == "__main__":
    source, output = sys.argv[1:3]
    for job in sys.argv[3:]:
        name, bits, sym = job.split("/")
        AutoRound(source, bits=int(bits), group_size=32, sym=sym == "sym", iters=0, disable_opt_rtn=True,
                  device_map="cpu").quantize_and_save(f"{output}/{name.replace(':', '_')}_{bits}_{sym}", format=name)
"""
JOBS = {"auto_gptq/4/sym": "gptq", "auto_awq/4/asym": "awq", "auto_round/3/sym": "auto-round",
        "auto_round:auto_awq/4/asym": "auto-round", "llm_compressor/4/sym": "compressed-tensors"}


@pytest.fixture(scope="module")
def exports(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("auto_round")
    script = root / "make.py"
    script.write_text(AUTO_ROUND)
    subprocess.run([sys.executable, script, source, root, *JOBS], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return {job: next((root / job.replace("/", "_").replace(":", "_")).rglob("config.json")).parent for job in JOBS}


@pytest.mark.parametrize("job", JOBS)
def test_auto_rounds_exports_come_back_to_their_own_format(exports, job, tmp_path):
    events = convert(exports[job], JOBS[job], tmp_path / "out")
    assert events[0]["type"] == "started" and events[0]["blocks_total"] == 2
    assert events[-1]["type"] == "succeeded"
    assert any(event.get("phase") == "export" for event in events)
    same_tensors(tmp_path / "out", exports[job])
    theirs = json.loads((exports[job] / "config.json").read_text())["quantization_config"]
    ours = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    for key in ("quant_method", "packing_format", "bits", "group_size", "sym", "desc_act"):
        if key in theirs and not (key == "sym" and theirs["quant_method"] == "awq"):
            assert ours[key] == theirs[key], key


def test_several_formats_at_once_and_back(exports, tmp_path):
    folder = exports["auto_gptq/4/sym"]
    convert(folder, "affine,compressed-tensors,dequantized", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["affine", "compressed-tensors", "dequantized"]
    for name in ("affine", "compressed-tensors"):
        convert(tmp_path / "out" / name, "gptq", tmp_path / name)
        same_tensors(tmp_path / name, folder)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "dequantized", dtype="auto")
    assert not hasattr(plain.config, "quantization_config") and plain.dtype == torch.float16


ARGUMENTS = {
    "w4": QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=32),
    "w4_asym": QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=16),
    "w8_channel": QuantizationArgs(num_bits=8, symmetric=True, strategy="channel"),
    "w3_channel_asym": QuantizationArgs(num_bits=3, symmetric=False, strategy="channel"),
}


def compressed_folder(source, folder, arguments, dtype):
    """What llm-compressor writes: every linear of the blocks through compressed-tensors' compressor."""
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    tensors, weights = {}, {}
    for name, weight in read(source).items():
        if "_proj" not in name:
            tensors[name] = weight
            continue
        module = name.removesuffix(".weight")
        group = arguments.group_size or weight.shape[1]
        blocks = weight.float().reshape(weight.shape[0], -1, group)
        low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
        middle, most = 1 << (arguments.num_bits - 1), (1 << arguments.num_bits) - 1
        if arguments.symmetric:
            scale, zero = (torch.maximum(-low, high) / (most / 2)).to(dtype), torch.zeros_like(low, dtype=torch.int8)
        else:
            scale = ((high - low) / most).to(dtype)
            zero = (-low / scale.float() - middle).round().clamp(-middle, middle - 1).to(torch.int8)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        packed = compressor.compress(state, scheme)
        tensors |= {f"{module}.{part}": tensor.contiguous() for part, tensor in packed.items()}
        weights[name] = compressor.decompress(packed, scheme)["weight"]
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    # Keys as llm-compressor orders and names them, with a pattern for a target.
    config["quantization_config"] = {
        "config_groups": {"group_0": {"format": "pack-quantized", "input_activations": None, "output_activations": None,
                                      "targets": ["re:.*_proj$"], "weights": arguments.model_dump()}},
        "format": "pack-quantized", "ignore": ["lm_head"], "quant_method": "compressed-tensors",
        "quantization_status": "compressed", "kv_cache_scheme": None, "sparsity_config": {}, "version": "0.20.0"}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16_scales", "f32_scales"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_compressed_tensors_own_files(source, name, dtype, tmp_path):
    weights = compressed_folder(source, tmp_path / "theirs", ARGUMENTS[name], dtype)
    convert(tmp_path / "theirs", "affine,compressed-tensors", tmp_path / "out")
    same_tensors(tmp_path / "out" / "compressed-tensors", tmp_path / "theirs")
    ours = {}
    for path in (tmp_path / "out" / "affine").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            ours |= {key: file.get_tensor(key) for key in file.keys()}
    for key, weight in weights.items():
        prefix = key.removesuffix(".weight") + "._weight_"
        codes, zeros, scales = (ours[prefix + part].float() for part in ("qdata", "zero_point", "scale"))
        width = codes.shape[1] // scales.shape[1]
        value = (codes - zeros.repeat_interleave(width, 1)) * scales.repeat_interleave(width, 1)
        assert torch.equal(value.to(weight.dtype), weight), key


def test_what_no_format_can_hold_is_refused_by_name(source, tmp_path):
    compressed_folder(source, tmp_path / "theirs", ARGUMENTS["w4_asym"], torch.bfloat16)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.weight_zero_point"][:] = 0
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    failed = convert(tmp_path / "theirs", "gptq", tmp_path / "out", code=2)[-1]
    assert failed["type"] == "failed" and failed["code"] == "FAILED_PRECONDITION"
    assert name in failed["message"] and "zero point" in failed["message"] and "compressed-tensors" in failed["message"]
    assert list((tmp_path / "out").iterdir()) == []
    # Found before anything is written.
    failed = convert(tmp_path / "theirs", "awq,onnx", tmp_path / "out", code=2)
    assert failed == []
    failed = convert(source, "gptq", tmp_path / "out", code=2)[-1]
    assert "no quantization_config" in failed["message"]
