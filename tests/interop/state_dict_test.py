"""What load_state_dict and copy_ do with the affine files' tensors and torchao: docs/formats.md says it in a table."""

import json
import os
import pathlib
import subprocess

import pytest
import torch
import transformers
from safetensors import safe_open
from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

TOOL = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "tests" / "format_tool"
KEY = "model.layers.0.self_attn.q_proj.weight"
IDS = torch.arange(20)[None]
CONFIG = transformers.LlamaConfig(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                                  num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
                                  dtype=torch.bfloat16)
# name: (scheme, what quantize_ takes for the same one)
CASES = {
    "intx": ({"bits": 4, "group_size": 32, "torchao": True},
             IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))),
    "int8": ({"bits": 8, "group_size": -1}, Int8WeightOnlyConfig(version=2)),
}


def plain():
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(CONFIG).to(torch.bfloat16).eval()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Raw tensors, what torchao makes of them, and a maker of a model that quantize_ has quantized alike."""
    root = tmp_path_factory.mktemp(request.param)
    plain().save_pretrained(root / "source")
    scheme, config = CASES[request.param]
    (root / "spec.json").write_text(json.dumps({"model": str(root / "source"), "output": str(root), "formats": [],
                                                "default": scheme, "modules": {}}))
    subprocess.run([TOOL, "export", root / "spec.json"], check=True)
    tensors, metadata = {}, {}
    for path in sorted((root / "affine").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
            metadata |= file.metadata()
    weights, left = unflatten_tensor_state_dict(tensors, metadata)
    assert not left

    def quantized():
        model = plain()
        quantize_(model.model, config)
        return model
    return request.param, tensors, weights, quantized


def parts(weight):
    return {name: getattr(weight.data, name) for name in ("qdata", "scale", "zero_point")}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(parts(a).values(), parts(b).values(), strict=True))


def test_assign_takes_the_quantized_tensors(case):
    _, _, weights, quantized = case
    for model in (plain(), quantized()):
        result = model.load_state_dict(weights, assign=True)
        assert not result.missing_keys and not result.unexpected_keys
        assert same(dict(model.named_parameters())[KEY], weights[KEY])
        assert model(IDS).logits.isfinite().all()


def test_copy_into_plain_weights_is_refused(case):
    _, _, weights, _ = case
    with pytest.raises(RuntimeError, match="tensor_data_names"):
        plain().load_state_dict(weights)


def test_copy_into_quantized_weights(case):
    name, _, weights, quantized = case
    model = quantized()
    if name == "int8":
        model.load_state_dict(weights)
    else:
        # quantize_ writes block_size as a tuple, and JSON knows lists alone.
        with pytest.raises(RuntimeError, match="metadata mismatch"):
            model.load_state_dict(weights)
        copies = {key: weight for key, weight in weights.items()}
        for weight in copies.values():
            if hasattr(weight, "block_size"):
                weight.block_size = tuple(weight.block_size)
        model = quantized()
        model.load_state_dict(copies)
        for weight in copies.values():
            if hasattr(weight, "block_size"):
                weight.block_size = list(weight.block_size)
    assert same(dict(model.named_parameters())[KEY], weights[KEY])


def test_raw_tensors_are_no_state_dict(case):
    _, tensors, _, _ = case
    with pytest.raises(RuntimeError, match="Missing key.*q_proj.weight"):
        plain().load_state_dict(tensors)
