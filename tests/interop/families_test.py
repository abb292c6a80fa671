"""GPTQ and Auto-Round on a tiny random model of every family, by ptq-worker alone (matrix_test.py has the others).

The witness is transformers: it loads what was written, and the perplexities in the report are its own. So the output
has the family's names and layouts, and the worker computes the quantized model as the loader does.
"""

import functools
import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_logits import random_ids
from random_models import FAMILIES, VOCABULARY, save_random_model

WORKER = Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"
LENGTH = 24
ALGORITHMS = {
    "gptq": dict(algorithm="gptq"),
    # With a Fisher pass before it.
    "auto-round": dict(algorithm="auto-round", recipe="fast", iterations=4),
}
# Where a window is part of the family, it is shorter than the samples.
OPTIONS = {
    "mistral": dict(sliding_window=7),
    "qwen2": dict(use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "gemma3_text": dict(layer_types=["sliding_attention", "full_attention"], sliding_window=7),
}


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    ids = {name: random_ids(VOCABULARY, samples, LENGTH, seed)
           for name, samples, seed in (("calibration", 8, 4), ("evaluation", 128, 5))}
    for name, tensor in ids.items():
        save_file({"input_ids": tensor}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            options = dict(num_hidden_layers=2, **OPTIONS.get(family, {}))
            save_random_model(made[family], family, **options)
        return made[family]

    return get


@functools.cache
def perplexity(folder, windows):
    ids = load_file(windows)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item())


def tensors_of(folder):
    tensors = {}
    for path in Path(folder).glob("*.safetensors"):
        tensors.update(load_file(path))
    return tensors


def run(spec, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(spec))
    return subprocess.run([WORKER, "run", "--spec", tmp_path / "job.json", "--output", tmp_path / "out"],
                          capture_output=True, text=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, algorithm, sources, windows, tmp_path):
    data = windows
    spec = dict(ALGORITHMS[algorithm], model=str(sources(family)), evaluation=str(data / "evaluation.safetensors"),
                calibration=str(data / "calibration.safetensors"), samples=8, sequence_length=LENGTH, bits=3,
                group_size=16, evaluation_window=LENGTH, format="dequantized")
    done = run(spec, tmp_path)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    output = tmp_path / "out"
    report = json.loads((output / "report.json").read_text())

    before = tensors_of(sources(family))
    after = tensors_of(output)
    assert {name: tensor.shape for name, tensor in before.items()} == \
           {name: tensor.shape for name, tensor in after.items()}
    changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    assert changed == {module["name"] for block in report["blocks"] for module in block["modules"]}

    figures = report["evaluation"]
    assert figures["baseline"]["perplexity"] == pytest.approx(perplexity(sources(family), data / "evaluation.safetensors"), rel=1e-4)
    assert figures["quantized"]["perplexity"] == pytest.approx(perplexity(output, data / "evaluation.safetensors"), rel=1e-4)
    assert figures["quantized"]["mean_kld"] > 1e-3
    if algorithm == "auto-round":
        assert report["tuning"]["loss"] == "Fisher metric"
        assert not [warning for warning in report["warnings"] if "Fisher metric" in warning and "no " in warning]


def test_learned_positions_bound_the_windows(sources, tmp_path):
    spec = dict(algorithm="opt-rtn", model=str(sources("gpt2")), calibration=str(tmp_path / "calibration.safetensors"),
                samples=1, sequence_length=129, group_size=16, format="dequantized")
    save_file({"input_ids": random_ids(VOCABULARY, 1, 129)}, tmp_path / "calibration.safetensors")
    done = run(spec, tmp_path)
    assert done.returncode != 0
    assert "129 tokens are longer than the 128 positions" in done.stdout + done.stderr


def test_transposed_weights_are_refused_where_no_loader_reads_them(sources, tmp_path):
    done = run(dict(algorithm="rtn", model=str(sources("gpt2")), group_size=16, format="affine"), tmp_path)
    assert done.returncode != 0
    assert "transformer.h.0.attn.c_attn: it is a Conv1D layer" in done.stdout + done.stderr
    assert "dequantized" in done.stdout + done.stderr
