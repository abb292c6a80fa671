"""Our logits against transformers' in float32: the example model, and random tiny Llamas with every option.

Each case prints the largest absolute difference; the bound is 1e-4.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model_logits import BOUND, ours, theirs

EXAMPLE = Path(os.environ["PTQ_SOURCE_DIR"]) / "examples" / "wikilm-llama-6m"
SMALL = dict(vocab_size=160, hidden_size=96, intermediate_size=144, num_hidden_layers=3,
             num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256)

# In the spelling of transformers 5; `theta` belongs beside them.
ROPES = {
    "default": dict(rope_type="default"),
    "linear": dict(rope_type="linear", factor=2.5),
    "dynamic-short": dict(rope_type="dynamic", factor=2.0),
    "dynamic-long": dict(rope_type="dynamic", factor=3.0),
    "llama3": dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    "yarn-attention-factor": dict(rope_type="yarn", factor=4.0, attention_factor=1.3,
                                  original_max_position_embeddings=64),
    # At this length both ends of the ramp lie inside the head, so that both betas count.
    "yarn-betas": dict(rope_type="yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5,
                       original_max_position_embeddings=128),
    "yarn-mscale": dict(rope_type="yarn", factor=4.0, mscale=0.8, mscale_all_dim=1.2,
                        original_max_position_embeddings=64),
    "yarn-untruncated": dict(rope_type="yarn", factor=4.0, truncate=False,
                             original_max_position_embeddings=64),
}
LENGTHS = {"dynamic-long": 400}  # beyond max_position_embeddings

OPTIONS = {
    "plain": {},
    "tied": dict(tie_word_embeddings=True),
    "attention-bias": dict(attention_bias=True),
    "mlp-bias": dict(mlp_bias=True),
    "all-biases-tied": dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "multi-query": dict(num_key_value_heads=1),
    "no-groups": dict(num_key_value_heads=6),
    "head-dim-32": dict(head_dim=32),
    "head-dim-8": dict(head_dim=8),
    "epsilon": dict(rms_norm_eps=1e-2),
    "theta": dict(rope_parameters=dict(rope_type="default", rope_theta=500000.0)),
}


def random_llama(folder, dtype=torch.float32, **options):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual initialisation, so that attention is uneven and biases count.
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.3))
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(1)
    model.to(dtype).save_pretrained(folder)


def spell_as_transformers_4(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta", 10000.0)
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


@pytest.fixture
def figure(capsys):
    """Prints a line past pytest's capture."""
    def show(line):
        with capsys.disabled():
            print("\n" + line, end="", flush=True)
    return show


def check(name, folder, tmp_path, figure, vocabulary=SMALL["vocab_size"], length=200, samples=3):
    ids = torch.randint(vocabulary, (samples, length), generator=torch.Generator().manual_seed(2))
    expected = theirs(folder, ids)
    assert expected.abs().max() > 1, "the case says nothing: all logits are small"
    difference = (ours(folder, ids, tmp_path, "--dtype", "float32") - expected).abs().max().item()
    figure(f"logits, {name}: max abs difference {difference:.2e}")
    assert difference <= BOUND


def test_example_model(tmp_path, figure):
    check("example model", EXAMPLE, tmp_path, figure, vocabulary=4096, length=512)


@pytest.mark.parametrize("spelling", [5, 4])
@pytest.mark.parametrize("rope", ROPES)
def test_rope(rope, spelling, tmp_path, figure):
    folder = tmp_path / "model"
    random_llama(folder, rope_parameters=dict(ROPES[rope], rope_theta=10000.0))
    if spelling == 4:
        spell_as_transformers_4(folder)
    check(f"rope {rope}, transformers {spelling} spelling", folder, tmp_path, figure,
          length=LENGTHS.get(rope, 200))


# What our side is told instead of the case's own value: the bound has to notice each of them.
CHANGES = [("default", "rope_theta", 9000.0), ("linear", "factor", 2.6), ("dynamic-long", "factor", 3.3),
           ("llama3", "factor", 7.0), ("llama3", "low_freq_factor", 1.2),
           ("llama3", "high_freq_factor", 5.0), ("llama3", "original_max_position_embeddings", 72),
           ("yarn", "factor", 4.5), ("yarn-attention-factor", "attention_factor", 1.31),
           ("yarn-betas", "beta_fast", 32.0), ("yarn-betas", "beta_slow", 1.0),
           ("yarn-mscale", "mscale", 0.9), ("yarn-mscale", "mscale_all_dim", 1.1),
           ("yarn-untruncated", "truncate", True)]


@pytest.mark.parametrize("rope,key,value", CHANGES)
def test_the_bound_notices_another_rope(rope, key, value, tmp_path):
    folder = tmp_path / "model"
    random_llama(folder, rope_parameters=dict(ROPES[rope], rope_theta=10000.0))
    ids = torch.randint(SMALL["vocab_size"], (1, LENGTHS.get(rope, 200)),
                        generator=torch.Generator().manual_seed(2))
    expected = theirs(folder, ids)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config["rope_parameters"].get(key) != value
    config["rope_parameters"][key] = value
    path.write_text(json.dumps(config))
    difference = (ours(folder, ids, tmp_path, "--dtype", "float32") - expected).abs().max().item()
    assert difference > 10 * BOUND


@pytest.mark.parametrize("option", OPTIONS)
def test_option(option, tmp_path, figure):
    folder = tmp_path / "model"
    random_llama(folder, **OPTIONS[option])
    check(option, folder, tmp_path, figure)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_dtype(dtype, tmp_path, figure):
    folder = tmp_path / "model"
    random_llama(folder, dtype=dtype, attention_bias=True)
    check(f"stored as {dtype}", folder, tmp_path, figure)


def test_several_shards(tmp_path, figure):
    folder = tmp_path / "model"
    random_llama(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    check("several shards", folder, tmp_path, figure)


def test_bfloat16_rounds_where_transformers_does(tmp_path, figure):
    """In bfloat16 the two round at the same places, so they agree far better with each other than with float32."""
    folder = tmp_path / "model"
    random_llama(folder, dtype=torch.bfloat16)
    ids = torch.randint(SMALL["vocab_size"], (2, 64), generator=torch.Generator().manual_seed(3))
    exact = theirs(folder, ids)
    expected = theirs(folder, ids, torch.bfloat16)
    difference = (ours(folder, ids, tmp_path, "--dtype", "bfloat16") - expected).abs().mean().item()
    rounding = (expected - exact).abs().mean().item()
    figure(f"logits in bfloat16: mean difference {difference:.2e}, from float32 {rounding:.2e}")
    assert difference < 0.5 * rounding
