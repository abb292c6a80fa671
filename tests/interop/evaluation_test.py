"""The report's perplexity and KLD against an evaluation that shares no code with ours: transformers' forward pass,
torchao's decoder of the `affine` folder, float64 sums in numpy's manner."""
import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SOURCE = pathlib.Path(os.environ.get("PTQ_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
WORKER = pathlib.Path(os.environ.get("PTQ_BUILD_DIR", SOURCE / "build")) / "bin" / "ptq-worker"
MODEL = SOURCE / "examples" / "wikilm-llama-6m"
EVALUATION = SOURCE / "examples" / "evaluation.txt"
WINDOW, WINDOWS = 256, 24


@pytest.fixture(scope="module", params=[("affine", []), ("dequantized", []),
                                        ("dequantized", ["model.embed_tokens:bits=4"])], ids=str)
def result(request, tmp_path_factory):
    """(folder, report) of the same job in both formats, and with the embedding, which is the head too."""
    format, rules = request.param
    folder = tmp_path_factory.mktemp(format)
    spec = {"model": str(MODEL), "algorithm": "rtn", "bits": 3, "group_size": 64, "asymmetric": True,
            "evaluation": str(EVALUATION), "evaluation_window": WINDOW, "evaluation_samples": WINDOWS,
            "format": format, "rule": rules}
    (folder / "job.json").write_text(json.dumps(spec))
    subprocess.run([WORKER, "run", "--spec", folder / "job.json", "--output", folder / "out"], check=True,
                   stdout=subprocess.DEVNULL)
    return folder / "out", json.loads((folder / "out" / "report.json").read_text())


def windows():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer(EVALUATION.read_text(), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[:WINDOW * WINDOWS]).view(WINDOWS, WINDOW)


def float_model(folder):
    """The model of `folder` with plain float32 weights, whatever it stores."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        for (name, ours), (_, theirs) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
            weight = theirs.dequantize() if hasattr(theirs, "dequantize") and type(theirs) is not torch.nn.Parameter \
                else theirs
            assert weight.shape == ours.shape, name
            ours.copy_(weight.to(torch.float32))
    return model.eval()


@torch.no_grad()
def figures(original, quantized, ids):
    nll_original, nll_quantized, klds, same, delta = [], [], [], [], []
    for window in ids:
        p = torch.log_softmax(original(window[None]).logits[0, :-1].double(), -1)
        q = torch.log_softmax(quantized(window[None]).logits[0, :-1].double(), -1)
        target = window[1:, None]
        nll_original.append(-p.gather(1, target)), nll_quantized.append(-q.gather(1, target))
        klds.append((p.exp() * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
        delta.append(q.gather(1, target).exp() - p.gather(1, target).exp())
    klds = torch.cat(klds).numpy()
    return {"baseline": float(torch.cat(nll_original).mean().exp()),
            "perplexity": float(torch.cat(nll_quantized).mean().exp()),
            "mean_kld": klds.mean(), "median_kld": np.median(klds), "p99_kld": np.percentile(klds, 99),
            "p999_kld": np.percentile(klds, 99.9), "max_kld": klds.max(),
            "top1_agreement": float(torch.cat(same).double().mean()),
            "rms_delta_p": float(torch.cat(delta).square().mean().sqrt())}


def test_our_figures_are_those_of_an_independent_evaluation(result):
    folder, report = result
    ours = report["evaluation"]["quantized"]
    theirs = figures(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval(), float_model(folder),
                     windows())
    for name, value in theirs.items():
        got = report["evaluation"]["baseline"]["perplexity"] if name == "baseline" else ours[name]
        print(f"{name:16} ours {got:.6f} theirs {value:.6f} ratio {got / value:.6f}")
    assert report["evaluation"]["scored_positions"] == WINDOWS * (WINDOW - 1)
    assert report["evaluation"]["baseline"]["perplexity"] == pytest.approx(theirs["baseline"], rel=0.002)
    assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=0.002)
    for name in ("mean_kld", "median_kld", "p99_kld", "p999_kld", "max_kld", "rms_delta_p"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.01), name
    assert ours["top1_agreement"] == pytest.approx(theirs["top1_agreement"], abs=0.002)
