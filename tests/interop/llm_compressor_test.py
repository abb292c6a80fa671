"""llm-compressor's own files, read by `ptq-worker convert` and written back: the same tensors.

llm-compressor runs in .venv/llmcompressor (tools/setup.sh long), on a CPU.
"""

import json
import os
import pathlib
import subprocess

import pytest
import torch
from safetensors.torch import load_file

BUILD = pathlib.Path(os.environ["PTQ_BUILD_DIR"])
SOURCE = pathlib.Path(os.environ["PTQ_SOURCE_DIR"])
MODEL = SOURCE / "examples" / "wikilm-llama-6m"
PYTHON = SOURCE / ".venv" / "llmcompressor" / "bin" / "python"

# (scheme, whether by GPTQ)
MAKE = """
import sys, torch, transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
source, output, scheme, gptq = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
tokens = torch.randint(0, 4096, (8, 64), generator=torch.Generator().manual_seed(1)).tolist()
data = Dataset.from_dict({"input_ids": tokens, "attention_mask": [[1] * 64] * 8})
if gptq == "gptq":
    oneshot(model=model, dataset=data, num_calibration_samples=8, max_seq_length=64,
            recipe=GPTQModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
else:
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
model.save_pretrained(output, save_compressed=True)
"""


def read(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


@pytest.mark.parametrize("scheme, algorithm, bits", [
    ("W4A16", "rtn", 4), ("W4A16_ASYM", "rtn", 4), ("W8A16", "rtn", 8), ("W4A16", "gptq", 4)])
def test_its_files_come_back_the_same(tmp_path, scheme, algorithm, bits):
    (tmp_path / "make.py").write_text(MAKE)
    done = subprocess.run([PYTHON, tmp_path / "make.py", MODEL, tmp_path / "theirs", scheme, algorithm],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    theirs = read(tmp_path / "theirs")
    assert "model.layers.0.mlp.down_proj.weight_packed" in theirs
    done = subprocess.run([BUILD / "bin" / "ptq-worker", "convert", "--from", tmp_path / "theirs", "--format",
                           "compressed-tensors,affine", "--output", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = read(tmp_path / "out" / "compressed-tensors")
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    config = json.loads((tmp_path / "out" / "compressed-tensors" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["num_bits"] == bits
