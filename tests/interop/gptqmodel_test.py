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
    "gptq-skip": ("gptq", {"bits": 4, "group_size": 32, "rule": ["model.layers.1.mlp.down_proj:skip"]}),
    "gptq-2-32": ("gptq", {"bits": 2, "group_size": 32}),
    "gptq-3-64": ("gptq", {"bits": 3, "group_size": 64}),
    "gptq-8-128": ("gptq", {"bits": 8, "group_size": 128}),
    "gptq-mixed": ("gptq", {"bits": 4, "group_size": 32, "rule": [r".*\.down_proj:bits=8"]}),
    "awq-4-32": ("awq", {"bits": 4, "group_size": 32, "asymmetric": True}),
    "awq-4-128-symmetric": ("awq", {"bits": 4, "group_size": 128}),
}


def run_loader(python, ids, folders):
    """{folder: what the loader says}."""
    done = subprocess.run([python, LOADER, ids, *folders], capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"folder"')]
    assert len(found) == len(folders), done.stdout + done.stderr
    return {pathlib.Path(entry["folder"]): entry for entry in found}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """case -> (folder with the format's and the dequantized output, what GPTQModel says of the former)."""
    assert GPTQMODEL.exists(), "GPTQModel is not installed: run `tools/setup.sh long`"
    root = tmp_path_factory.mktemp("gptqmodel")
    ids = torch.randint(4096, (1, 64), generator=torch.Generator().manual_seed(4))
    save_file({"input_ids": ids}, root / "ids.safetensors")
    for case, (name, scheme) in CASES.items():
        spec = {"model": str(MODEL), "algorithm": "rtn", "format": [name, "dequantized"], "device": "cpu", **scheme}
        (root / "job.json").write_text(json.dumps(spec))
        done = subprocess.run([BUILD / "bin" / "ptq-worker", "run", "--spec", root / "job.json", "--output", root / case],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    plain = run_loader(sys.executable, root / "ids.safetensors", [root / case / "dequantized" for case in CASES])
    assert not [entry for entry in plain.values() if "error" in entry]
    packed = {case: root / case / name for case, (name, _) in CASES.items()}
    # The kernel of 4 bits that GPTQModel prefers on a CPU takes groups of 32 to 256 alone.
    config = json.loads((packed["gptq-4-channel"] / "config.json").read_text())
    config["quantization_config"]["backend"] = "torch"
    (packed["gptq-4-channel"] / "config.json").write_text(json.dumps(config))
    said = run_loader(GPTQMODEL, root / "ids.safetensors", list(packed.values()))
    return {case: (root / case, said[folder]) for case, folder in packed.items()}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_dequantized_models(case, loaded, capsys):
    folder, said = loaded[case]
    verdict = {loader["loader"]: loader for entry in json.loads((folder / "report.json").read_text())["loaders"]
               if entry["format"] == CASES[case][0] for loader in entry["loaders"]}["transformers"]
    if case == "gptq-mixed":  # transformers takes one scheme for all layers
        assert verdict["verdict"] == "does_not_load" and "transformers takes for all layers" in str(verdict["problems"])
        assert "mismatched_sizes" in said["error"]
        return
    assert verdict["verdict"].startswith("loads")
    assert "error" not in said, said["error"]
    expected = load_file(folder / "dequantized" / "logits")["logits"]
    difference = (load_file(folder / CASES[case][0] / "logits")["logits"] - expected).abs()
    kernels = [kind for kind in said["layers"] if "Linear" in kind and kind != "Linear"]
    with capsys.disabled():
        print(f"\n{case}: {', '.join(kernels)}; logits differ by {difference.mean():.1e} on average, "
              f"{difference.max():.1e} at most, of {expected.abs().mean():.2f}", end="")
    assert kernels, "no layer is one of GPTQModel's"
    # GPTQModel computes in half precision.
    assert difference.mean() < 0.01 * expected.abs().mean()
