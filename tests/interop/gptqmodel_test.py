"""GPTQ and AWQ files in the loader that transformers has for them, GPTQModel: logits of the dequantized model.

One job writes both; GPTQModel runs in .venv/gptqmodel (tools/setup.sh long).
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

BUILD = pathlib.Path(os.environ["PTQ_BUILD_DIR"])
SOURCE = pathlib.Path(os.environ["PTQ_SOURCE_DIR"])
MODEL = SOURCE / "examples" / "wikilm-llama-6m"
GPTQMODEL = SOURCE / ".venv" / "gptqmodel" / "bin" / "python"
LOADER = pathlib.Path(__file__).parent / "load_in_transformers.py"

CASES = {
    "gptq-4-32": ("gptq", {"bits": 4, "group_size": 32}),
    "gptq-4-channel": ("gptq", {"bits": 4, "group_size": -1}),
    "gptq-2-32": ("gptq", {"bits": 2, "group_size": 32}),
    "gptq-3-64": ("gptq", {"bits": 3, "group_size": 64}),
    "gptq-8-128": ("gptq", {"bits": 8, "group_size": 128}),
    "gptq-mixed": ("gptq", {"bits": 4, "group_size": 32, "rule": [r".*\.down_proj:bits=8"]}),
    "awq-4-32": ("awq", {"bits": 4, "group_size": 32, "asymmetric": True}),
    "awq-4-128-symmetric": ("awq", {"bits": 4, "group_size": 128}),
}


def logits(python, folder, ids, out):
    done = subprocess.run([python, LOADER, folder, ids, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_file(out)["logits"], done.stdout.splitlines()[-1]


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_dequantized_models(case, tmp_path, capsys):
    format_name, scheme = CASES[case]
    spec = {"model": str(MODEL), "algorithm": "rtn", "format": [format_name, "dequantized"], **scheme}
    (tmp_path / "job.json").write_text(json.dumps(spec))
    subprocess.run([BUILD / "bin" / "ptq-worker", "run", "--spec", tmp_path / "job.json", "--output", tmp_path / "out"],
                   check=True, capture_output=True)
    ids = torch.randint(4096, (1, 64), generator=torch.Generator().manual_seed(4))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    expected, _ = logits(sys.executable, tmp_path / "out" / "dequantized", tmp_path / "ids.safetensors", tmp_path / "a")
    found, kinds = logits(GPTQMODEL, tmp_path / "out" / format_name, tmp_path / "ids.safetensors", tmp_path / "b")
    difference = (found - expected).abs()
    with capsys.disabled():
        print(f"\n{case}: {kinds}; logits differ by {difference.mean():.1e} on average, {difference.max():.1e} at most", end="")
    # GPTQModel computes in half precision on a CPU.
    assert difference.mean() < 0.01 * expected.abs().mean()
    assert "Torch" in kinds, "the layers are not GPTQModel's"
