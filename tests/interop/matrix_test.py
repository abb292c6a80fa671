"""Every family by every algorithm in every format, opened by the loader that the format is for; prints the README's table.

Tiny random models, 4 bits in groups of 32, symmetric. A cell is "yes" if for each algorithm the loader's logits are those
of the dequantized model, or the number of the sentence with which the program refused the format.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import llama_cpp  # noqa: E402
from gptqmodel_test import GPTQMODEL, run_loader  # noqa: E402
from random_models import FAMILIES, VOCABULARY, save_random_model  # noqa: E402

WORKER = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"
ALGORITHMS = {"rtn": {}, "opt-rtn": {}, "gptq": {}, "auto-round": {"iterations": 2}}
LOADERS = {"affine": "transformers, torchao", "compressed-tensors": "transformers", "gptq": "GPTQModel", "awq": "GPTQModel",
           "auto-round": "transformers, auto-round", "gguf": "llama.cpp", "dequantized": "transformers"}
LENGTH = 48
# Mean difference of the logits over their mean magnitude. GPTQModel computes in half precision, auto-round's kernel
# too; llama.cpp rounds activations to 8 bits.
BOUNDS = {"affine": 1e-5, "compressed-tensors": 1e-5, "gptq": 0.01, "awq": 0.01, "auto-round": 0.01, "gguf": 0.03}

table = {}  # (family, format): {algorithm: "yes", or a refusal, or what went wrong}


def sentence(done):
    """The message of a worker that ended with an error."""
    messages = [json.loads(line).get("message") for line in done.stdout.splitlines() if line.startswith("{")]
    return [message for message in messages if message][-1]


def print_table():
    reasons = []
    lines = ["| | " + " | ".join(LOADERS) + " |", "| --- |" + " --- |" * len(LOADERS),
             "| opened by | " + " | ".join(LOADERS.values()) + " |"]
    for family in FAMILIES:
        cells = []
        for name in LOADERS:
            values = list(dict.fromkeys(table.get((family, name), {}).values()))
            for value in values:
                if value not in ("yes", "FAILED") and value not in reasons:
                    reasons.append(value)
            cells.append(", ".join(f"({reasons.index(value) + 1})" if value in reasons else value for value in values))
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    print("\n" + "\n".join(lines + [""] + [f"({i + 1}) {reason}" for i, reason in enumerate(reasons)]), flush=True)


@pytest.fixture(scope="module", autouse=True)
def table_at_the_end(request):
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print_table()


def write_all(family, root):
    """Writes {(algorithm, format): folder, or the sentence of a refusal}."""
    save_random_model(root / "model", family)
    ids = torch.randint(VOCABULARY, (16, LENGTH), generator=torch.Generator().manual_seed(5))
    save_file({"input_ids": ids}, root / "calibration.safetensors")
    save_file({"input_ids": ids[:1]}, root / "ids.safetensors")
    written = {}
    for algorithm, options in ALGORITHMS.items():
        for name in LOADERS:
            out = root / algorithm / name
            out.parent.mkdir(exist_ok=True)
            spec = {"model": str(root / "model"), "calibration": str(root / "calibration.safetensors"), "samples": 8,
                    "sequence_length": LENGTH, "algorithm": algorithm, "bits": 4, "group_size": 32, "format": name,
                    "device": "cpu", **options}
            (root / "job.json").write_text(json.dumps(spec))
            done = subprocess.run([WORKER, "run", "--spec", root / "job.json", "--output", out], capture_output=True, text=True)
            written[algorithm, name] = out if done.returncode == 0 else sentence(done).replace(str(root), "")
    return written


def llama_cpp_logits(folder, ids):
    with llama_cpp.Model(next(folder.glob("*.gguf"))) as model:
        return torch.from_numpy(model.logits(ids[0].tolist())).unsqueeze(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_of_every_algorithm(family, tmp_path):
    written = write_all(family, tmp_path)
    ids = tmp_path / "ids.safetensors"
    here = [folder for (_, name), folder in written.items()
            if not isinstance(folder, str) and name in ("affine", "compressed-tensors", "auto-round", "dequantized")]
    there = [folder for (_, name), folder in written.items() if not isinstance(folder, str) and name in ("gptq", "awq")]
    said = run_loader(sys.executable, ids, here) | (run_loader(GPTQMODEL, ids, there) if there else {})
    problems = []
    for (algorithm, name), folder in written.items():
        cell = table.setdefault((family, name), {})
        if isinstance(folder, str):
            cell[algorithm] = folder
            continue
        cell[algorithm] = "FAILED"
        try:
            if name == "gguf":
                logits = llama_cpp_logits(folder, load_file(ids)["input_ids"])
            else:
                assert "error" not in said[folder], said[folder]["error"]
                logits = load_file(folder / "logits")["logits"]
            expected = load_file(tmp_path / algorithm / "dequantized" / "logits")["logits"]
            assert expected.abs().mean() > 0.1
            difference = ((logits - expected).abs().mean() / expected.abs().mean()).item()
            assert difference <= BOUNDS.get(name, 0), f"logits differ by {difference:.1e} of their magnitude"
            cell[algorithm] = "yes"
        except (AssertionError, StopIteration, FileNotFoundError) as error:
            problems.append(f"{algorithm}, {name}: {error}")
    assert written["rtn", "dequantized"] == tmp_path / "rtn" / "dequantized", "the family itself is refused"
    assert not problems, "\n".join(problems)
