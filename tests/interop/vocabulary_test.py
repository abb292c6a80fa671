"""Quantized heads and embeddings in the loaders of each format: logits of the dequantized model; and what is refused.

Random models; jobs of ptq-worker. The gguf file is opened by llama.cpp, all else by transformers.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import llama_cpp  # noqa: E402
from random_models import save_random_model  # noqa: E402

WORKER = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"
VOCABULARY = 320
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 192}
HEAD = "lm_head:bits=8"
EMBEDDING = "model.embed_tokens:bits=8,group_size=-1"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_random_model(root / "untied", "llama", **SIZES, tie_word_embeddings=False)
    save_random_model(root / "tied", "llama", **SIZES, tie_word_embeddings=True)
    save_random_model(root / "gpt_neox", "gpt_neox", **SIZES)
    ids = torch.randint(0, VOCABULARY, (8, 64), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": ids}, root / "ids.safetensors")
    return root


def run(folder, model, formats, rules, check=True, **options):
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"model": str(model), "algorithm": "rtn", "bits": 4, "group_size": 32, "rule": rules, "format": formats,
            **options}
    (folder / "job.json").write_text(json.dumps(spec))
    command = [WORKER, "run", "--spec", folder / "job.json", "--output", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    return done


def report(folder):
    return json.loads((folder / "out" / "report.json").read_text())


def read(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    return tensors


def logits(folder, **options):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(name.endswith(".g_idx") for name in info["unexpected_keys"])  # auto-round's loader has no use for it
    ids = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model.eval()(ids).logits.float(), model


def relative(a, b):
    return ((a - b).square().mean().sqrt() / b.std()).item()


def is_torchao(weight):
    return type(weight).__name__ in ("IntxUnpackedToInt8Tensor", "Int8Tensor")


@pytest.fixture(scope="module")
def head(models, tmp_path_factory):
    root = tmp_path_factory.mktemp("head")
    run(root, models / "untied", ["affine", "compressed-tensors", "gptq", "auto-round", "gguf", "dequantized"], [HEAD])
    return root


def test_a_quantized_head_in_transformers(head):
    expected, _ = logits(head / "out" / "dequantized", dtype=torch.float32)
    ours, model = logits(head / "out" / "affine", dtype="auto")
    assert is_torchao(model.lm_head.weight) and not is_torchao(model.model.embed_tokens.weight)
    assert torch.equal(ours, expected)
    ours, model = logits(head / "out" / "compressed-tensors", dtype=torch.float32)
    assert hasattr(model.lm_head, "weight_scale")
    assert (ours - expected).abs().max() <= 1e-5
    for format in ("gptq", "auto-round"):
        options = {"quantization_config": transformers.AutoRoundConfig()} if format == "gptq" else {}
        ours, model = logits(head / "out" / format, dtype=torch.float16, device_map="cpu", **options)
        assert type(model.lm_head).__name__ == "QuantLinear"
        # float16 products; the plain head is off by ten times that.
        assert relative(ours, expected) < 3e-3, format


def test_the_head_counts(models, head):
    """Or the tests above could not tell a quantized head from a plain one."""
    original = read(models / "untied")["lm_head.weight"]
    rounded = read(head / "out" / "dequantized")["lm_head.weight"]
    assert 1e-3 < relative(rounded, original) < 2e-2


def test_what_the_report_and_the_loaders_rules_say(head):
    out = report(head)
    assert [module["name"] for module in out["outside_of_blocks"]] == ["lm_head"]
    assert out["outside_of_blocks"][0]["bits"] == 8 and out["outside_of_blocks"][0]["fallback_reason"] is None
    verdicts = {(entry["format"], loader["loader"]): loader["verdict"]
                for entry in out["loaders"] for loader in entry["loaders"]}
    assert verdicts["affine", "transformers"].startswith("loads")
    assert verdicts["compressed-tensors", "transformers"].startswith("loads")
    assert verdicts["auto-round", "transformers"].startswith("loads")
    assert verdicts["gptq", "transformers"] == "does_not_load"  # but in auto-round's loader
    html = (head / "out" / "report.html").read_text()
    assert "Outside of the blocks" in html and "lm_head" in html


@pytest.mark.parametrize("source", ["gptq", "compressed-tensors", "auto-round", "affine"])
def test_a_quantized_head_is_converted(head, tmp_path, source):
    subprocess.run([WORKER, "convert", "--from", head / "out" / source, "--format", "affine", "--output",
                    tmp_path / "out"], check=True, stdout=subprocess.DEVNULL)
    ours, expected = read(tmp_path / "out"), read(head / "out" / "affine")
    for part in ("qdata", "scale", "zero_point"):
        assert torch.equal(ours[f"lm_head._weight_{part}"], expected[f"lm_head._weight_{part}"])


@pytest.mark.parametrize("model, rules, quantized", [
    ("untied", [EMBEDDING], ["embedding"]), ("untied", ["model.embed_tokens:bits=4,symmetric=false"], ["embedding"]),
    ("untied", [EMBEDDING, HEAD], ["embedding", "head"]), ("tied", [EMBEDDING], ["embedding", "head"]),
    ("tied", ["model.embed_tokens:bits=4"], ["embedding", "head"])])
def test_a_quantized_embedding_in_torchao(models, tmp_path, model, rules, quantized):
    run(tmp_path, models / model, ["affine", "dequantized"], rules)
    expected, _ = logits(tmp_path / "out" / "dequantized", dtype=torch.float32)
    ours, loaded = logits(tmp_path / "out" / "affine", dtype="auto")
    assert is_torchao(loaded.get_input_embeddings().weight) == ("embedding" in quantized)
    assert is_torchao(loaded.get_output_embeddings().weight) == ("head" in quantized)
    # A tied Int8Tensor scales behind the product.
    assert (ours - expected).abs().max() <= 1e-5


def test_a_head_of_another_name(models, tmp_path):
    """transformers 5 loads GPT-NeoX's embed_out as lm_head."""
    run(tmp_path, models / "gpt_neox", ["affine", "compressed-tensors", "dequantized"], ["gpt_neox.embed_in:skip"])
    expected, _ = logits(tmp_path / "out" / "dequantized", dtype=torch.float32)
    for format, options in (("affine", {"dtype": "auto"}), ("compressed-tensors", {"dtype": torch.float32})):
        ours, _ = logits(tmp_path / "out" / format, **options)
        assert (ours - expected).abs().max() <= 1e-5, format
    run(tmp_path / "rounded", models / "gpt_neox", ["dequantized"], ["embed_out:bits=2"])
    ours, _ = logits(tmp_path / "rounded" / "out", dtype=torch.float32)
    assert relative(ours, expected) > 0.1
    run(tmp_path / "embedding", models / "gpt_neox", ["affine", "dequantized"], ["gpt_neox.embed_in:bits=8"])
    expected, _ = logits(tmp_path / "embedding" / "out" / "dequantized", dtype=torch.float32)
    ours, _ = logits(tmp_path / "embedding" / "out" / "affine", dtype="auto")
    assert (ours - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("model, rules, types", [
    ("untied", ["lm_head:bits=8", "model.embed_tokens:bits=4"], {"token_embd.weight": "Q4_0", "output.weight": "Q8_0"}),
    ("untied", ["model.embed_tokens:bits=8"], {"token_embd.weight": "Q8_0", "output.weight": "F32"}),
    ("untied", ["lm_head:bits=5,symmetric=false"], {"token_embd.weight": "F32", "output.weight": "Q5_1"}),
    ("tied", ["model.embed_tokens:bits=8"], {"token_embd.weight": "Q8_0"}),
    ("tied", ["model.embed_tokens:bits=4,symmetric=false"], {"token_embd.weight": "Q4_1"})])
def test_llama_cpp(models, tmp_path, model, rules, types):
    run(tmp_path, models / model, ["gguf", "dequantized"], [*rules, "model.layers.*:bits=8"])
    path = tmp_path / "out" / "gguf" / "model.gguf"
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert {name: tensors[name].tensor_type.name for name in types} == types
    assert ("output.weight" in tensors) == (model == "untied")
    plain = read(tmp_path / "out" / "dequantized")
    for name, kind in types.items():
        values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        own = plain["model.embed_tokens.weight" if name.startswith("token") else "lm_head.weight"].numpy()
        if kind in ("Q4_1", "Q5_1"):  # each group's minimum is a float16
            assert np.abs(values - own).max() < 2e-3 * np.abs(own).max()
        else:
            assert np.array_equal(values, own), name
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "dequantized",
                                                                  dtype=torch.float32).eval()
    ids = np.random.default_rng(2).integers(0, VOCABULARY, 100).tolist()
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    with llama_cpp.Model(path) as loaded:
        difference = llama_cpp.total_variation(loaded.logits(ids), expected)
    print(f"{rules}: total variation {difference:.4f}")
    assert difference < 0.03


@pytest.mark.parametrize("model, format, rule, sentence", [
    ("tied", "affine", "lm_head:bits=8", "lm_head is the embedding in this model"),
    ("tied", "compressed-tensors", "model.embed_tokens:bits=8", "it is the head too"),
    ("tied", "gptq", "model.embed_tokens:bits=8", "it is the head too"),
    ("untied", "compressed-tensors", "model.embed_tokens:bits=8", "its loaders know no quantized embedding"),
    ("untied", "gptq", "model.embed_tokens:bits=8", "its loaders know no quantized embedding"),
    ("untied", "auto-round", "model.embed_tokens:bits=8", "its loaders know no quantized embedding"),
    ("untied", "awq", "lm_head:bits=4", "its loaders know no quantized head"),
    ("gpt_neox", "affine", "embed_out:bits=8", "transformers renames it"),
    ("gpt_neox", "compressed-tensors", "embed_out:bits=8", "transformers renames it"),
    ("untied", "gguf", "lm_head:bits=3", "it has no type for 3 bits"),
    ("untied", "affine", "lm_head:group_size=0", "one scale for the whole of lm_head"),
    ("untied", "affine", "lm_head:group_size=48", "group_size 48 does not divide in_features 64 of lm_head"),
])
def test_what_no_loader_takes_is_refused_before_the_work_starts(models, tmp_path, model, format, rule, sentence):
    done = run(tmp_path, models / model, [format], [rule], check=False, asymmetric=format == "awq")
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("algorithm", ["gptq", "opt-rtn", "auto-round"])
@pytest.mark.parametrize("formats", [["affine"], ["gguf", "dequantized"]], ids=str)
def test_a_job_that_is_stopped_gives_the_same_digest(models, tmp_path, algorithm, formats):
    options = {"algorithm": algorithm, "calibration": str(models / "ids.safetensors"), "samples": 6,
               "sequence_length": 64}
    if algorithm == "auto-round":
        options["iterations"] = 10
    rules = [HEAD, EMBEDDING]
    run(tmp_path / "whole", models / "untied", formats, rules, **options)
    spec = tmp_path / "whole" / "job.json"
    command = [WORKER, "run", "--spec", spec, "--output", tmp_path / "stopped"]
    for stop in (1, 2):  # behind the second block; behind the last one, when the head is next
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            for line in worker.stdout:
                event = json.loads(line)
                if event["type"] == "block_done" and event["block"] == stop:
                    worker.send_signal(signal.SIGKILL)
                    break
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    stopped = json.loads((tmp_path / "stopped" / "report.json").read_text())
    assert stopped["blocks_resumed"] == 3
    whole = report(tmp_path / "whole")
    assert stopped["result_digest"] == whole["result_digest"]
    assert stopped["outside_of_blocks"] == whole["outside_of_blocks"]
    assert len(whole["blocks"]) == 3
    embedding, head = whole["outside_of_blocks"]
    assert embedding["fallback_reason"].startswith("embedding: rtn")
    assert (head["fallback_reason"] or "").startswith("head: opt-rtn" if algorithm == "auto-round" else "")
    assert head["output_mse"] < head["rtn_output_mse"]
