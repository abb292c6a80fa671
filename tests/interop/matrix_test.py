"""Every family by every algorithm in every format, opened by the loader that the format is for; prints the README's table.

Tiny random models, 4 bits in groups of 32, symmetric. A cell is "yes" if for each algorithm the loader's logits are those
of the dequantized model. Otherwise it is the number of a sentence: that with which the program refused the format, or
with which its report says that the loader does not load the folder, and then the loader must not.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import llama_cpp  # noqa: E402
from gptqmodel_test import GPTQMODEL, SOURCE, run_loader  # noqa: E402
import random_expert_models  # noqa: E402
import random_models  # noqa: E402

FAMILIES = list(random_models.FAMILIES) + random_expert_models.FAMILIES
WORKER = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"
ALGORITHMS = {"rtn": {}, "opt-rtn": {}, "gptq": {}, "auto-round": {"iterations": 2}}
LOADERS = {"affine": "transformers, torchao", "compressed-tensors": "transformers", "gptq": "GPTQModel", "awq": "GPTQModel",
           "auto-round": "transformers, auto-round", "gguf": "llama.cpp", "dequantized": "transformers"}
# auto-round alone in its process: it changes transformers' own classes.
PROCESSES = [(sys.executable, ["affine", "compressed-tensors", "dequantized"]), (sys.executable, ["auto-round"]),
             (GPTQMODEL, ["gptq", "awq"])]
LENGTH = 48
# Difference of a token's logits over their magnitude; without a quantized layer's weights it is 0.5 and more.
# GPTQModel computes in half precision and auto-round's kernel too; packed experts are decoded in it; llama.cpp rounds
# activations to 8 bits.
BOUNDS = {"affine": 1e-5, "compressed-tensors": 1e-5, "gptq": 0.03, "awq": 0.03, "auto-round": 0.01, "gguf": 0.03}
# Beyond the plain case: what lets every format hold the model.
EXPERT_OPTIONS = {"qwen3_moe": dict(norm_topk_prob=True), "deepseek_v2": dict(qk_nope_head_dim=32, qk_rope_head_dim=32),
                  "deepseek_v3": dict(qk_nope_head_dim=32, qk_rope_head_dim=32)}

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
    if family in random_models.FAMILIES:
        random_models.save_random_model(root / "model", family)
    else:
        kind, options = random_expert_models.CASES[family]
        random_expert_models.make_model(root / "model", kind, {**options, **EXPERT_OPTIONS.get(family, {})})
    ids = torch.randint(random_models.VOCABULARY, (16, LENGTH), generator=torch.Generator().manual_seed(5))
    save_file({"input_ids": ids}, root / "calibration.safetensors")
    save_file({"input_ids": ids[:1]}, root / "ids.safetensors")
    written = {}

    def run(algorithm, formats, out):
        spec = {"model": str(root / "model"), "calibration": str(root / "calibration.safetensors"), "samples": 8,
                "sequence_length": LENGTH, "algorithm": algorithm, "bits": 4, "group_size": 32, "format": formats,
                "device": "cpu", **ALGORITHMS[algorithm]}
        (root / "job.json").write_text(json.dumps(spec))
        return subprocess.run([WORKER, "run", "--spec", root / "job.json", "--output", out], capture_output=True, text=True)

    for algorithm in ALGORITHMS:
        (root / algorithm).mkdir()
        accepted = [name for name in LOADERS if written and not isinstance(written["rtn", name], str)]
        together = bool(accepted) and run(algorithm, accepted, root / algorithm).returncode == 0
        for name in LOADERS:  # those that were refused to rtn are asked for again, and all, if one was refused now
            written[algorithm, name] = out = root / algorithm / name
            if not (together and name in accepted):
                done = run(algorithm, [name], out)
                if done.returncode != 0:
                    written[algorithm, name] = sentence(done).replace(str(root), "")
    return written


def refusal(folder, name):
    """Why transformers does not load the folder by the report, or None."""
    report = json.loads((next(path for path in (folder, folder.parent) if (path / "report.json").exists()) / "report.json")
                        .read_text())
    formats = [entry for entry in report["loaders"] if entry["format"] == name]
    verdict = next(entry for entry in formats[0]["loaders"] if entry["loader"] == "transformers")
    if verdict["verdict"] != "does_not_load":
        return None
    return re.sub(r"^model\.\S+( and \d+ more)?:|(model\.\S+,? ?)+( and \d+ more)?:", "experts:", verdict["problems"][0])


def llama_cpp_logits(folder, ids):
    with llama_cpp.Model(next(folder.glob("*.gguf"))) as model:
        return torch.from_numpy(model.logits(ids[0].tolist())).unsqueeze(0)


def bound(family, name):
    # Their routers amplify what is rounded.
    of_experts = {"compressed-tensors": 0.02, "gguf": 0.06} if family in random_expert_models.FAMILIES else {}
    return of_experts.get(name, BOUNDS.get(name, 0))


def difference(logits, expected):
    """The median token's: where two experts are as good, rounding sends a few tokens to the other one."""
    return ((logits - expected).abs().mean(-1) / expected.abs().mean(-1)).median().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_of_every_algorithm(family, tmp_path):
    written = write_all(family, tmp_path)
    ids = tmp_path / "ids.safetensors"
    said = {}
    for python, names in PROCESSES:
        folders = [folder for (_, name), folder in written.items() if not isinstance(folder, str) and name in names]
        if "gptq" in names:  # GPTQModel.load asks for a tokenizer
            for folder in folders:
                for path in (SOURCE / "examples" / "wikilm-llama-6m").glob("tokenizer*.json"):
                    shutil.copy(path, folder)
        said |= run_loader(python, ids, folders) if folders else {}
    problems = []
    for (algorithm, name), folder in written.items():
        cell = table.setdefault((family, name), {})
        if isinstance(folder, str):
            cell[algorithm] = folder
            continue
        cell[algorithm] = "FAILED"
        try:
            why_not = None if name == "gguf" else refusal(folder, name)
            if why_not and "GPTQModel.load" in why_not:
                why_not = None  # which is what opened it here
            expected = load_file(tmp_path / algorithm / "dequantized" / "logits")["logits"]
            assert expected.abs().mean() > 0.1
            if name == "gguf":
                found = difference(llama_cpp_logits(folder, load_file(ids)["input_ids"]), expected)
            elif "error" in said[folder]:
                assert why_not, said[folder]["error"]
                found = float("inf")
            else:
                found = difference(load_file(folder / "logits")["logits"], expected)
            if why_not:
                assert not found <= 0.3, f"it is said not to load, but differs by {found:.1e} only: {why_not}"
            else:
                assert found <= bound(family, name), f"logits differ by {found:.1e} of their magnitude"
            cell[algorithm] = why_not or "yes"
        except (AssertionError, StopIteration, FileNotFoundError) as error:
            problems.append(f"{algorithm}, {name}: {error}")
    assert written["rtn", "dequantized"] == tmp_path / "rtn" / "dequantized", "the family itself is refused"
    assert not problems, "\n".join(problems)
