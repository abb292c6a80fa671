"""Every family on CUDA against the CPU, by ptq-worker alone: the model itself, and what algorithms make of it; K-quants
and vocabularies on one family.

Tiny random models in float32, so that a device has no rounding of its own to hide behind. Needs a GPU (make gpu-test).
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

INTEROP = pathlib.Path(__file__).parents[1] / "interop"
sys.path.insert(0, str(INTEROP))
import random_expert_models  # noqa: E402
import random_models  # noqa: E402

WORKER = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"
FAMILIES = list(random_models.FAMILIES) + random_expert_models.FAMILIES
GROUPS = dict(bits=3, group_size=16)
ALGORITHMS = {
    "rtn": dict(algorithm="rtn"),
    "gptq": dict(algorithm="gptq"),
    "auto-round": dict(algorithm="auto-round", recipe="fast", iterations=20),
    "paper": dict(algorithm="auto-round", recipe="paper", iterations=20),
}
VOCABULARY = dict(GROUPS, rule=["lm_head:bits=4,group_size=32", "model.embed_tokens:bits=8,group_size=-1"])
# Of a model whose rows are whole super-blocks.
SCHEMES = {"Q4_K": dict(scheme="Q4_K"), "Q6_K": dict(scheme="Q6_K"), "Q4_K_M": dict(preset="Q4_K_M"),
           "vocabulary": VOCABULARY}
WIDE = dict(hidden_size=256, intermediate_size=512, vocab_size=320, tie_word_embeddings=False)
CASES = [(family, algorithm, "") for family in FAMILIES for algorithm in ALGORITHMS]
CASES += [("wide", algorithm, scheme) for scheme in SCHEMES for algorithm in ("rtn", "opt-rtn", "gptq")]
CASES += [("wide", "auto-round", "vocabulary")]
LENGTH = 32


def make_model(folder, family):
    if family == "wide":
        random_models.save_random_model(folder, "llama", **WIDE)
    elif family in random_models.FAMILIES:
        random_models.save_random_model(folder, family)
    else:
        random_expert_models.make_model(folder, *random_expert_models.CASES[family])


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{(family, algorithm, scheme, device): report.json, or what the worker said}: several jobs at a time."""
    root = tmp_path_factory.mktemp("devices")
    generator = torch.Generator().manual_seed(7)
    for name, samples in (("calibration", 32), ("evaluation", 128)):
        ids = torch.randint(random_models.VOCABULARY, (samples, LENGTH), generator=generator)
        save_file({"input_ids": ids}, root / f"{name}.safetensors")
    for family in [*FAMILIES, "wide"]:
        make_model(root / family, family)

    def run(case):
        family, algorithm, scheme, device = case
        name = "-".join(case)
        spec = dict(ALGORITHMS.get(algorithm, dict(algorithm=algorithm)), **SCHEMES.get(scheme, GROUPS),
                    model=str(root / family), samples=32, sequence_length=LENGTH, device=device,
                    calibration=str(root / "calibration.safetensors"), evaluation=str(root / "evaluation.safetensors"),
                    evaluation_window=LENGTH, format="dequantized")
        (root / f"{name}.json").write_text(json.dumps(spec))
        done = subprocess.run([WORKER, "run", "--spec", root / f"{name}.json", "--output", root / name],
                              env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True)
        path = root / name / "report.json"
        return json.loads(path.read_text()) if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]

    cases = [(*case, device) for case in CASES for device in ("cpu", "cuda")]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        return dict(zip(cases, pool.map(run, cases)))


@pytest.mark.parametrize("family, algorithm, scheme", CASES)
def test_cuda_does_what_the_cpu_does(family, algorithm, scheme, reports, capsys):
    cpu, cuda = (reports[family, algorithm, scheme, device] for device in ("cpu", "cuda"))
    assert isinstance(cpu, dict), cpu
    assert isinstance(cuda, dict), cuda
    divergences = [report["evaluation"]["quantized"]["mean_kld"] for report in (cpu, cuda)]
    perplexities = [report["evaluation"]["baseline"]["perplexity"] for report in (cpu, cuda)]
    with capsys.disabled():
        print(f"\n{family}, {algorithm} {scheme}: mean KLD {divergences[0]:.5f} and {divergences[1]:.5f}; perplexity before "
              f"{perplexities[0]:.4f} and {perplexities[1]:.4f}; {(cuda['tuning'] or {}).get('paths', '')}", end="")
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-3)
    # Codes that a device rounds the other way change the rest: of GPTQ's row, of a tuning's path.
    assert divergences[1] == pytest.approx(divergences[0], rel={"rtn": 1e-3, "opt-rtn": 1e-3, "gptq": 0.02}.get(algorithm, 0.06))
