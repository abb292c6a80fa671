"""The affine output in transformers and torchao: every weight decodes to the dequantized output's bits.

Random tiny Llamas; the C++ side is tests/interop/format_tool.cc.
"""

import json
import os
import pathlib
import subprocess

import pytest
import torch
import transformers
from safetensors import safe_open
from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

TOOL = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "tests" / "format_tool"
LAYERS = 3

W4 = {"bits": 4, "group_size": 32, "symmetric": True}
DOWN = "model.layers.1.mlp.down_proj"
UP = "model.layers.2.mlp.up_proj"

# name: (default scheme, overrides, tied, dtype, shards of the source)
CASES = {
    "w4g32": (W4, {}, True, torch.bfloat16, 1),
    "w4g32_untied": (W4, {}, False, torch.bfloat16, 3),
    "w4g32_asym": ({**W4, "symmetric": False}, {}, False, torch.bfloat16, 1),
    "w3_channel": ({"bits": 3, "group_size": -1}, {}, True, torch.float16, 1),
    "w5_tensor_asym": ({"bits": 5, "group_size": 0, "symmetric": False}, {}, False, torch.float32, 1),
    "w8_channel": ({"bits": 8, "group_size": -1}, {}, False, torch.bfloat16, 1),
    "w8_channel_asym": ({"bits": 8, "group_size": -1, "symmetric": False}, {}, True, torch.bfloat16, 1),
    "w4_torchao": ({**W4, "torchao": True}, {}, True, torch.bfloat16, 1),
    "w4_skip": (W4, {DOWN: None, UP: None}, True, torch.bfloat16, 2),
    "mixed": (
        W4,
        {
            DOWN: {"bits": 8, "group_size": -1},
            UP: {"bits": 2, "group_size": 16, "symmetric": False},
            "model.layers.0.self_attn.q_proj": {"bits": 6, "group_size": 0},
            "model.layers.0.self_attn.v_proj": {"bits": 7, "group_size": 64, "symmetric": False},
            "model.layers.2.mlp.gate_proj": None,
        },
        False,
        torch.bfloat16,
        2,
    ),
    "mixed_under_int8": (
        {"bits": 8, "group_size": -1},
        {DOWN: {"bits": 4, "group_size": 32}, UP: None},
        True,
        torch.bfloat16,
        1,
    ),
}


def make_model(folder, tied, dtype, shards):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=192, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=tied, attention_bias=not tied, dtype=dtype,
    )
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    size = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    model.to(dtype).save_pretrained(folder, max_shard_size=size if shards == 1 else size // shards)


@pytest.fixture(scope="module", params=CASES, ids=str)
def output(request, tmp_path_factory):
    """The folder with source, affine and dequantized output of one case, and the case."""
    root = tmp_path_factory.mktemp(request.param)
    default, modules, tied, dtype, shards = CASES[request.param]
    make_model(root / "source", tied, dtype, shards)
    spec = {"model": str(root / "source"), "output": str(root), "formats": ["dequantized"],
            "default": default, "modules": modules}
    (root / "spec.json").write_text(json.dumps(spec))
    subprocess.run([TOOL, "export", root / "spec.json"], check=True)
    return root, CASES[request.param]


def load(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def same_bits(a, b):
    integer = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def test_every_shard_opens_and_lists_all_parameters(output):
    root, (_, _, tied, _, _) = output
    plain = dict(load(root / "source").named_parameters())
    paths = sorted((root / "affine").glob("*.safetensors"))
    assert [p.name for p in paths] == [f"model-{i + 1:05d}-of-{LAYERS + 2:05d}.safetensors"
                                      for i in range(LAYERS + 2)]
    tensors, metadata = {}, {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            names = json.loads(file.metadata()["tensor_names"])
            assert sorted(names) == sorted(plain)
            assert file.metadata()["format"] == "pt"
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
            metadata |= file.metadata()
    index = json.loads((root / "affine" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(tensors)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert ("lm_head.weight" in tensors) == (not tied)
    weights, left = unflatten_tensor_state_dict(tensors, metadata)
    assert not left and sorted(weights) == sorted(plain)


def test_transformers_decodes_to_the_dequantized_bits(output):
    root, (default, modules, _, dtype, _) = output
    quantized = load(root / "affine")
    reference = dict(load(root / "dequantized").named_parameters())
    source = dict(load(root / "source").named_parameters())
    classes = {}
    for name, parameter in quantized.named_parameters():
        data = parameter.data
        if hasattr(data, "dequantize") and type(data) not in (torch.Tensor, torch.nn.Parameter):
            classes[name.removesuffix(".weight")] = type(data).__name__
            assert not same_bits(source[name].data, reference[name].data), name
            data = data.dequantize()
        assert same_bits(data, reference[name].data), name
    expected = {}
    for layer in range(LAYERS):
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                       "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{module}"
            scheme = modules.get(name, default)
            if scheme is not None:
                int8 = (scheme["bits"], scheme["group_size"], scheme.get("symmetric", True)) == (8, -1, True)
                expected[name] = "Int8Tensor" if int8 else "IntxUnpackedToInt8Tensor"
    assert classes == expected


def test_logits(output):
    root, (default, modules, _, dtype, _) = output
    ids = torch.randint(0, 320, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load(root / "affine")(ids).logits
        reference = load(root / "dequantized")(ids).logits
    schemes = [default, *(scheme for scheme in modules.values() if scheme)]
    if all((s["bits"], s["group_size"]) != (8, -1) or not s.get("symmetric", True) for s in schemes):
        assert torch.equal(ours, reference)
    else:
        # torchao multiplies by an Int8Tensor's codes first and scales the rounded product after it.
        error = (ours - reference).float().square().mean().sqrt() / reference.float().std()
        assert 0 < error < 0.05


def test_config_keeps_the_source_and_adds_the_quantization(output):
    root, (default, modules, _, _, _) = output
    config = json.loads((root / "affine" / "config.json").read_text())
    quantization = config.pop("quantization_config")
    source = json.loads((root / "source" / "config.json").read_text())
    assert list(config.items()) == list(source.items())
    skipped = [name for name, scheme in modules.items() if scheme is None]
    assert sorted(quantization["modules_to_not_convert"]) == sorted(["lm_head", *skipped])
    assert (root / "dequantized" / "config.json").read_bytes() == (root / "source" / "config.json").read_bytes()
    assert ((root / "affine" / "generation_config.json").read_bytes()
            == (root / "source" / "generation_config.json").read_bytes())
