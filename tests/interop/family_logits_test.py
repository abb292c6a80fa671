"""Logits of every family against transformers' eager attention in float32, over every option that a family has.

Then the same with one option changed on our side alone: the bound has to notice each of them.
"""

import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_logits import BOUND, TOOL, random_ids
from random_models import FAMILIES, VOCABULARY, save_random_model

LENGTH = 40
WINDOW = 12  # shorter than the sequences
SLIDING, FULL = "sliding_attention", "full_attention"


def longrope(**more):
    generator = torch.Generator().manual_seed(5)
    def factors():
        return (1 + 3 * torch.rand(8, generator=generator)).tolist()
    return dict(rope_type="longrope", rope_theta=10000.0, short_factor=factors(), long_factor=factors(), **more)


# Beside the plain case; every one changes what is computed, or which tensors there are.
CASES = {
    "llama": {"biases": dict(attention_bias=True, mlp_bias=True)},
    "mistral": {"window": dict(sliding_window=WINDOW), "head-dim": dict(head_dim=24, hidden_size=60),
                "window-tied": dict(sliding_window=WINDOW, tie_word_embeddings=True),
                "window-beyond": dict(sliding_window=LENGTH)},
    "qwen2": {"tied": dict(tie_word_embeddings=True),
              "window": dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
              "window-everywhere": dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0),
              "window-unused": dict(use_sliding_window=False, sliding_window=WINDOW, max_window_layers=1),
              "layer-types": dict(use_sliding_window=True, sliding_window=WINDOW, layer_types=[SLIDING, FULL, SLIDING]),
              "yarn": dict(rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=1e6,
                                                original_max_position_embeddings=32))},
    "qwen3": {"tied": dict(tie_word_embeddings=True), "biases": dict(attention_bias=True),
              "head-dim": dict(head_dim=24),
              "window": dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2)},
    "gemma2": {"untied": dict(tie_word_embeddings=False), "no-caps": dict(attn_logit_softcapping=None,
                                                                           final_logit_softcapping=None),
               "biases": dict(attention_bias=True), "scalar": dict(query_pre_attn_scalar=40),
               "multi-query": dict(num_key_value_heads=1),
               "layer-types": dict(layer_types=[FULL, SLIDING, SLIDING])},
    "gemma3_text": {"untied": dict(tie_word_embeddings=False), "pattern": dict(layer_types=None, num_hidden_layers=7),
                    # transformers does not cap the attention of this family, whatever its config.json says.
                    "caps": dict(attn_logit_softcapping=4.0, final_logit_softcapping=3.0),
                    "biases": dict(attention_bias=True),
                    "ropes": dict(rope_parameters={FULL: dict(rope_type="linear", factor=8.0, rope_theta=50000.0),
                                                   SLIDING: dict(rope_type="default", rope_theta=300.0)})},
    "phi3": {"tied": dict(tie_word_embeddings=True), "window": dict(sliding_window=WINDOW),
             "partial": dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.75)),
             "longrope-short": dict(rope_parameters=longrope(), original_max_position_embeddings=64),
             "longrope-long": dict(rope_parameters=longrope(), original_max_position_embeddings=16),
             "longrope-factor": dict(rope_parameters=longrope(attention_factor=1.4), original_max_position_embeddings=16)},
    "olmo2": {"tied": dict(tie_word_embeddings=True), "biases": dict(attention_bias=True),
              "no-groups": dict(num_key_value_heads=4), "epsilon": dict(rms_norm_eps=1e-2)},
    "granite": {"tied": dict(tie_word_embeddings=True), "biases": dict(attention_bias=True, mlp_bias=True),
                "defaults": dict(attention_multiplier=1.0, embedding_multiplier=1.0, residual_multiplier=1.0,
                                 logits_scaling=1.0)},
    "seed_oss": {"tied": dict(tie_word_embeddings=True), "no-biases": dict(attention_bias=False),
                 "mlp-biases": dict(mlp_bias=True)},
    "starcoder2": {"untied": dict(tie_word_embeddings=False), "no-biases": dict(use_bias=False),
                   "window": dict(sliding_window=WINDOW), "relu": dict(hidden_act="relu"),
                   "epsilon": dict(norm_epsilon=1e-2)},
    "gpt_neox": {"serial": dict(use_parallel_residual=False), "no-attention-bias": dict(attention_bias=False),
                 "whole-rotary": dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                           partial_rotary_factor=1.0)),
                 "tied": dict(tie_word_embeddings=True), "gelu-new": dict(hidden_act="gelu_new"),
                 "linear": dict(rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=10000.0,
                                                     partial_rotary_factor=0.5))},
    "opt": {"untied": dict(tie_word_embeddings=False), "no-biases": dict(enable_bias=False),
            "gelu": dict(activation_function="gelu")},
    "gpt2": {"untied": dict(tie_word_embeddings=False), "inverse-layer": dict(scale_attn_by_inverse_layer_idx=True),
             "unscaled": dict(scale_attn_weights=False), "default-inner": dict(n_inner=None)},
}

# (family, case, changes of our config.json): a key with dots lies deeper.
CHANGES = [
    ("mistral", "window", {"sliding_window": WINDOW + 1}),
    ("mistral", "window", {"sliding_window": None}),
    ("qwen2", "window", {"max_window_layers": 2, "layer_types": None}),
    ("qwen2", "window", {"use_sliding_window": False}),
    ("qwen2", "layer-types", {"layer_types": [FULL, FULL, SLIDING]}),
    ("qwen3", "plain", {"rms_norm_eps": 1e-2}),
    ("gemma2", "plain", {"attn_logit_softcapping": 4.2}),
    ("gemma2", "plain", {"attn_logit_softcapping": None}),
    ("gemma2", "plain", {"final_logit_softcapping": 3.1}),
    ("gemma2", "plain", {"query_pre_attn_scalar": 17}),
    ("gemma2", "plain", {"sliding_window": WINDOW - 1}),
    ("gemma2", "plain", {"layer_types": [FULL, SLIDING, FULL]}),
    ("gemma2", "plain", {"hidden_activation": "gelu"}),
    ("gemma3_text", "plain", {"layer_types": [SLIDING, SLIDING, SLIDING]}),
    ("gemma3_text", "plain", {"query_pre_attn_scalar": 17}),
    ("gemma3_text", "ropes", {f"rope_parameters.{FULL}.rope_theta": 45000.0}),
    ("gemma3_text", "ropes", {f"rope_parameters.{FULL}.factor": 7.0}),
    ("gemma3_text", "ropes", {f"rope_parameters.{SLIDING}.rope_theta": 320.0}),
    ("phi3", "window", {"sliding_window": WINDOW + 1}),
    ("phi3", "partial", {"rope_parameters.rope_theta": 9000.0}),
    ("phi3", "longrope-short", {"rope_parameters.short_factor": [2.0] * 8}),
    ("phi3", "longrope-long", {"rope_parameters.long_factor": [2.0] * 8}),
    ("phi3", "longrope-long", {"original_max_position_embeddings": 17}),
    ("phi3", "longrope-long", {"original_max_position_embeddings": LENGTH}),
    ("phi3", "longrope-factor", {"rope_parameters.attention_factor": 1.41}),
    ("olmo2", "epsilon", {"rms_norm_eps": 1.2e-2}),
    ("granite", "plain", {"attention_multiplier": 0.31}),
    ("granite", "plain", {"embedding_multiplier": 2.6}),
    ("granite", "plain", {"residual_multiplier": 0.41}),
    ("granite", "plain", {"logits_scaling": 1.72}),
    ("seed_oss", "plain", {"rope_parameters.rope_theta": 9000.0}),
    ("starcoder2", "window", {"sliding_window": WINDOW + 1}),
    ("starcoder2", "plain", {"hidden_act": "gelu"}),
    ("starcoder2", "plain", {"hidden_act": "silu"}),
    ("starcoder2", "epsilon", {"norm_epsilon": 1.2e-2}),
    ("gpt_neox", "plain", {"use_parallel_residual": False}),
    ("gpt_neox", "plain", {"rope_parameters.partial_rotary_factor": 0.5}),
    ("gpt_neox", "plain", {"rope_parameters.rope_theta": 5000.0}),
    ("gpt_neox", "plain", {"hidden_act": "gelu_new"}),
    ("opt", "plain", {"activation_function": "gelu"}),
    ("gpt2", "plain", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", "plain", {"scale_attn_weights": False}),
    ("gpt2", "plain", {"activation_function": "gelu"}),
]


SHARDED = "several shards"


def change_config(folder, changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        *path, last = key.split(".")
        place = config
        for step in path:
            place = place[step]
        assert place.get(last, "absent") != value
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(transformers' logits, ours or None) by (family, case, index of the change or None): all by one process."""
    root = tmp_path_factory.mktemp("families")
    ids = random_ids(VOCABULARY, samples=2, length=LENGTH)
    (root / "ids").mkdir()
    save_file({"input_ids": ids}, root / "ids" / "model.safetensors")
    expected, files = {}, []

    def add(folder):
        files.extend([folder, root / "ids" / "model.safetensors", folder / "logits" / "logits.safetensors"])
        files[-1].parent.mkdir()

    for family in FAMILIES:
        cases = {"plain": {}, **CASES[family], SHARDED: dict(max_shard_size="100KB", dtype=torch.bfloat16)}
        for case, options in cases.items():
            folder = root / f"{family}-{case}"
            model = save_random_model(folder, family, **options)
            if case == SHARDED:
                assert len(list(folder.glob("*.safetensors"))) > 1
            with torch.no_grad():
                expected[family, case, None] = model(ids).logits
            add(folder)
    for index, (family, case, changes) in enumerate(CHANGES):
        folder = root / f"{family}-{case}-{index}"
        shutil.copytree(root / f"{family}-{case}", folder, ignore=shutil.ignore_patterns("logits"))
        change_config(folder, changes)
        expected[family, case, index] = expected[family, case, None]
        add(folder)
    done = subprocess.run([TOOL, *files, "--dtype", "float32"], stderr=subprocess.PIPE, text=True)
    print(done.stderr)
    outputs = [load_file(path)["logits"] if path.exists() else None for path in files[2::3]]
    return dict(zip(expected, zip(expected.values(), outputs)))


@pytest.mark.parametrize("family,case", [(family, case) for family in FAMILIES
                                         for case in ["plain", *CASES[family], SHARDED]])
def test_logits(family, case, results):
    expected, actual = results[family, case, None]
    assert expected.std() > 0.3, "the case says nothing: all logits are small"
    assert actual is not None, "the tool refused the model; the first test shows why"
    difference = (actual - expected).abs().max().item()
    print(f"logits, {family}, {case}: max abs difference {difference:.2e}")
    assert difference <= BOUND


@pytest.mark.parametrize("index", range(len(CHANGES)), ids=[
    f"{family}-{case}-{'-'.join(changes)}-{next(iter(changes.values()))}" for family, case, changes in CHANGES])
def test_the_bound_notices_another_option(index, results):
    family, case, _ = CHANGES[index]
    expected, actual = results[family, case, index]
    assert (actual - expected).abs().max().item() > 5 * BOUND
