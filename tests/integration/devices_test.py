"""Every family on CUDA against the CPU, by ptq-worker alone: the model itself, and what algorithms make of it.

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
ALGORITHMS = {
    "rtn": dict(algorithm="rtn"),
    "gptq": dict(algorithm="gptq"),
    "auto-round": dict(algorithm="auto-round", recipe="fast", iterations=20),
    "paper": dict(algorithm="auto-round", recipe="paper", iterations=20),
}
LENGTH = 32


def make_model(folder, family):
    if family in random_models.FAMILIES:
        random_models.save_random_model(folder, family)
    else:
        random_expert_models.make_model(folder, *random_expert_models.CASES[family])


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{(family, algorithm, device): report.json, or what the worker said}: several jobs at a time."""
    root = tmp_path_factory.mktemp("devices")
    generator = torch.Generator().manual_seed(7)
    for name, samples in (("calibration", 32), ("evaluation", 128)):
        ids = torch.randint(random_models.VOCABULARY, (samples, LENGTH), generator=generator)
        save_file({"input_ids": ids}, root / f"{name}.safetensors")
    for family in FAMILIES:
        make_model(root / family, family)

    def run(case):
        family, algorithm, device = case
        name = "-".join(case)
        spec = dict(ALGORITHMS[algorithm], model=str(root / family), samples=32, sequence_length=LENGTH, bits=3,
                    group_size=16, device=device, calibration=str(root / "calibration.safetensors"),
                    evaluation=str(root / "evaluation.safetensors"), evaluation_window=LENGTH, format="dequantized")
        (root / f"{name}.json").write_text(json.dumps(spec))
        done = subprocess.run([WORKER, "run", "--spec", root / f"{name}.json", "--output", root / name],
                              env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True)
        path = root / name / "report.json"
        return json.loads(path.read_text()) if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]

    cases = [(family, algorithm, device) for family in FAMILIES for algorithm in ALGORITHMS for device in ("cpu", "cuda")]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        return dict(zip(cases, pool.map(run, cases)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_does_what_the_cpu_does(family, algorithm, reports, capsys):
    cpu, cuda = reports[family, algorithm, "cpu"], reports[family, algorithm, "cuda"]
    assert isinstance(cpu, dict), cpu
    assert isinstance(cuda, dict), cuda
    divergences = [report["evaluation"]["quantized"]["mean_kld"] for report in (cpu, cuda)]
    perplexities = [report["evaluation"]["baseline"]["perplexity"] for report in (cpu, cuda)]
    with capsys.disabled():
        print(f"\n{family}, {algorithm}: mean KLD {divergences[0]:.5f} and {divergences[1]:.5f}; perplexity before "
              f"{perplexities[0]:.4f} and {perplexities[1]:.4f}; {(cuda['tuning'] or {}).get('paths', '')}", end="")
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-3)
    # Codes that a device rounds the other way change the rest: of GPTQ's row, of a tuning's path.
    assert divergences[1] == pytest.approx(divergences[0], rel={"rtn": 1e-3, "gptq": 0.02}.get(algorithm, 0.06))
