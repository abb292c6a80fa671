"""Mixtures of experts and latent attention: logits against transformers in float32, and whole jobs.

Models are random and tiny, with every option of their families. Each logits case prints the largest absolute
difference; the bound is 1e-4. Jobs run ptq-worker: algorithms on every family (matrix_test.py has all of them), what
becomes of an expert that calibration never reaches, and token counts against transformers' routers.
"""
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_logits import BOUND, ours, random_ids, theirs
from random_expert_models import CASES, FAMILIES, VOCABULARY, make_model

WORKER = Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"


@pytest.fixture
def figure(capsys):
    """Prints a line past pytest's capture."""
    def show(line):
        with capsys.disabled():
            print("\n" + line, end="", flush=True)
    return show


@pytest.mark.parametrize("case", CASES)
def test_logits(case, tmp_path, figure):
    folder = tmp_path / "model"
    make_model(folder, *CASES[case])
    ids = random_ids(VOCABULARY, 2, 150)
    expected = theirs(folder, ids, attn_implementation="eager")
    assert expected.abs().max() > 1, "the case says nothing: all logits are small"
    difference = (ours(folder, ids, tmp_path, "--dtype", "float32") - expected).abs().max().item()
    figure(f"logits, {case}: max abs difference {difference:.2e}")
    assert difference <= BOUND


# What our side is told instead of the case's own value: the bound has to notice each of them.
CHANGES = [("mixtral", "num_experts_per_tok", 1), ("qwen2_moe normalized", "norm_topk_prob", False),
           ("qwen3_moe", "num_experts_per_tok", 2), ("deepseek_v2 groups, scaled", "topk_method", "greedy"),
           ("deepseek_v2 groups, scaled", "topk_group", 3), ("deepseek_v2 groups, scaled", "routed_scaling_factor", 2.4),
           ("deepseek_v3", "topk_group", 3), ("deepseek_v3", "norm_topk_prob", False),
           ("deepseek_v3", "rope_interleave", False)]


@pytest.mark.parametrize("case,key,value", CHANGES)
def test_the_bound_notices_another_option(case, key, value, tmp_path):
    folder = tmp_path / "model"
    make_model(folder, *CASES[case])
    ids = random_ids(VOCABULARY, 2, 100)
    expected = theirs(folder, ids, attn_implementation="eager")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config[key] != value
    config[key] = value
    path.write_text(json.dumps(config))
    assert (ours(folder, ids, tmp_path, "--dtype", "float32") - expected).abs().max().item() > 10 * BOUND


def test_keys_of_published_qwen3_configs(tmp_path):
    """transformers writes num_local_experts; the hub's files say num_experts."""
    folder = tmp_path / "model"
    make_model(folder, *CASES["qwen3_moe"])
    path = folder / "config.json"
    config = json.loads(path.read_text())
    before = ours(folder, random_ids(VOCABULARY, 1, 20), tmp_path)
    config["num_experts"] = config.pop("num_local_experts")
    path.write_text(json.dumps(config))
    assert ours(folder, random_ids(VOCABULARY, 1, 20), tmp_path).equal(before)


@pytest.mark.parametrize("case,changes,message", [
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob true is not supported"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method"),
    ("deepseek_v2", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but a token can go to 8"),
    ("deepseek_v2", {"num_key_value_heads": 2}, "num_key_value_heads (2) must be num_attention_heads (6)"),
    ("deepseek_v3", {"n_group": 3}, "n_group (3) does not divide 8 experts"),
    ("deepseek_v3", {"topk_group": 5}, "topk_group (5)"),
    ("deepseek_v3", {"num_experts_per_tok": 5}, "can go to 4 experts only"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func"),
    ("qwen2_moe", {"mlp_only_layers": 3}, "mlp_only_layers must be an array of integers"),
    ("mixtral", {"num_local_experts": 5}, "block_sparse_moe"),
])
def test_what_cannot_be_computed_is_refused_by_name(case, changes, message, tmp_path):
    folder = tmp_path / "model"
    make_model(folder, *CASES[case])
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (tmp_path / "job.json").write_text(json.dumps({"model": str(folder), "algorithm": "rtn", "group_size": 32}))
    result = subprocess.run([WORKER, "run", "--spec", tmp_path / "job.json", "--output", tmp_path / "out"],
                            capture_output=True, text=True)
    assert result.returncode != 0
    assert message in result.stdout


ALGORITHMS = {
    "rtn": {"algorithm": "rtn"},
    "opt-rtn": {"algorithm": "opt-rtn"},
    "gptq": {"algorithm": "gptq"},
    "auto-round": {"algorithm": "auto-round", "recipe": "fast", "iterations": 8},
    "paper": {"algorithm": "auto-round", "recipe": "paper", "iterations": 6},
}
# What of each family jobs run on: the most options at a time, sizes in whole groups.
JOBS = {
    "mixtral": "mixtral",
    "qwen2_moe": "qwen2_moe mlp_only_layers",
    "qwen3_moe": "qwen3_moe",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
}
SAMPLES, LENGTH = 16, 64


def run_job(folder, output, tmp_path, **spec):
    calibration = tmp_path / "calibration.safetensors"
    save_file({"input_ids": random_ids(VOCABULARY, SAMPLES + 4, LENGTH, seed=5)}, calibration)
    job = {"model": str(folder), "calibration": str(calibration), "samples": SAMPLES, "sequence_length": LENGTH,
           "group_size": 32, "bits": 4, **spec}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    result = subprocess.run([WORKER, "run", "--spec", path, "--output", output], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return json.loads((output / "report.json").read_text())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def of(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "model"
            make_model(made[family], *CASES[JOBS[family]], dtype=torch.bfloat16)
        return made[family]
    return of


def layers(report):
    return [module for block in report["blocks"] for module in block["modules"]]


@pytest.mark.parametrize("algorithm", ["rtn", "gptq", "auto-round"])
@pytest.mark.parametrize("family", FAMILIES)
def test_algorithms_run(family, algorithm, checkpoints, tmp_path):
    folder = checkpoints(family)
    report = run_job(folder, tmp_path / "out", tmp_path, **ALGORITHMS[algorithm])
    stored = load_file(folder / "model.safetensors")
    linears = {name.removesuffix(".weight") for name, tensor in stored.items()
               if name.startswith("model.layers.") and tensor.dim() == 2 and not name.endswith("gate.weight")}
    assert {module["name"] for module in layers(report)} == linears, "routers are no layers, all else is"
    for module in layers(report):
        assert module["output_mse"] is None or module["output_mse"] > 0
        if algorithm == "rtn":
            assert module["tokens"] is None
        elif ".experts." not in module["name"]:
            assert module["tokens"] == SAMPLES * LENGTH
    if algorithm == "auto-round":
        assert report["tuning"]["loss"] == "Fisher metric"
        tuned = [module for module in layers(report) if module["fallback_reason"] is None]
        assert any(".experts." in module["name"] for module in tuned)
        for module in layers(report):
            few = module["tokens"] < 256
            assert (module["fallback_reason"] is not None) == few, module


@pytest.mark.parametrize("family", FAMILIES)
def test_the_result_is_the_model_that_transformers_loads(family, checkpoints, tmp_path):
    folder = checkpoints(family)
    run_job(folder, tmp_path / "out", tmp_path, algorithm="rtn", bits=3, format="dequantized")
    stored = load_file(folder / "model.safetensors")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32,
                                                       attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = random_ids(VOCABULARY, 2, 40)
    with torch.no_grad():
        loaded = model.eval()(ids).logits
    assert (ours(tmp_path / "out", ids, tmp_path, "--dtype", "float32") - loaded).abs().max() <= BOUND
    written = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        written |= load_file(shard)
    assert written.keys() == stored.keys()
    for name, tensor in stored.items():
        same = torch.equal(written[name], tensor)
        linear = name.startswith("model.layers.") and tensor.dim() == 2 and not name.endswith("gate.weight")
        assert same != linear, name


def never_choose_expert_two(model):
    """The first coordinate of the states in front of the router is positive, and expert 2 hates it."""
    model.model.embed_tokens.weight[:, 0] = 1
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight[:, 0] = 0
        layer.self_attn.o_proj.weight[0] = 0
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.down_proj[:, 0] = 0
            layer.mlp.gate.weight[:, 0] = 0
            layer.mlp.gate.weight[2] = 0
            layer.mlp.gate.weight[2, 0] = -100


@pytest.mark.parametrize("algorithm", ["opt-rtn", "gptq", "auto-round", "paper"])
def test_an_expert_that_calibration_never_reaches_is_named(algorithm, tmp_path):
    folder = tmp_path / "model"
    make_model(folder, *CASES["mixtral"], change=never_choose_expert_two)
    report = run_job(folder, tmp_path / "out", tmp_path, **ALGORITHMS[algorithm])
    reason = "no calibration token reached this layer: opt-rtn, all columns alike"
    for index, block in enumerate(report["blocks"]):
        experts = {}
        for module in block["modules"]:
            if ".experts." not in module["name"]:
                continue
            expert = int(module["name"].split(".experts.")[1].split(".")[0])
            experts.setdefault(expert, set()).add(module["tokens"])
            assert (module["fallback_reason"] == reason) == (module["tokens"] == 0), module
        assert experts[2] == {0} and sum(tokens != {0} for tokens in experts.values()) > 1
        assert all(len(tokens) == 1 for tokens in experts.values()), "layers of an expert see the same tokens"
        assert sum(tokens.pop() for tokens in experts.values()) == 2 * SAMPLES * LENGTH
        sentence = next(w for w in report["warnings"] if f"layers.{index}." in w and reason in w)
        for layer in ("w1", "w2", "w3"):
            assert f"model.layers.{index}.block_sparse_moe.experts.2.{layer}" in sentence
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<td>model.layers.1</td><td>4</td><td>0</td>" in page


@pytest.mark.parametrize("family", FAMILIES)
def test_token_counts_are_those_of_transformers_routers(family, checkpoints, tmp_path):
    """Of the first block with experts where nothing in front of it is quantized: the others are skipped."""
    folder = checkpoints(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    routed = next(i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts"))
    chosen = {}
    model.model.layers[routed].mlp.gate.register_forward_hook(lambda m, i, output: chosen.update(experts=output[2]))
    with torch.no_grad():
        model(random_ids(VOCABULARY, SAMPLES + 4, LENGTH, seed=5)[:SAMPLES])
    experts = model.model.layers[routed].mlp.gate.num_experts
    expected = torch.bincount(chosen["experts"].flatten(), minlength=experts).tolist()
    skipped = [rf"model\.layers\.{i}\..*:skip" for i in range(routed)]
    report = run_job(folder, tmp_path / "out", tmp_path, algorithm="opt-rtn", rule=skipped)
    counts = [0] * experts
    for module in report["blocks"][routed]["modules"]:
        if ".experts." in module["name"]:
            counts[int(module["name"].split(".experts.")[1].split(".")[0])] = module["tokens"]
    assert counts == expected
