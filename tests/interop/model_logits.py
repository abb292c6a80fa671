"""Logits of a checkpoint, by our tool and by transformers, for the tests that compare the two."""

import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

TOOL = Path(os.environ["PTQ_BUILD_DIR"]) / "tests" / "model_logits_tool"
BOUND = 1e-4


def ours(folder, ids, tmp_path, *flags):
    inputs = tmp_path / "inputs"
    inputs.mkdir(exist_ok=True)
    save_file({"input_ids": ids}, inputs / "model.safetensors")
    subprocess.run([TOOL, folder, inputs / "model.safetensors", tmp_path / "logits.safetensors", *flags],
                   check=True)
    return load_file(tmp_path / "logits.safetensors")["logits"]


def theirs(folder, ids, dtype=torch.float32, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()
    with torch.no_grad():
        return model(ids).logits.float()


def random_ids(vocabulary, samples, length, seed=2):
    return torch.randint(vocabulary, (samples, length), generator=torch.Generator().manual_seed(seed))
