#!/usr/bin/env python3
"""Peak memory of ptq-worker: RTN of a random 2.2 GB Llama checkpoint of 24 blocks, W4G128, no evaluation.

Prints one JSON line; exits 1 beyond the limit. Usage: memory_benchmark.py [--build build] [--folder DIR]
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import save_file

LIMIT_MIB = 700
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "eos_token_id": 2, "torch_dtype": "bfloat16"}


def write_model(folder):
    """Random weights with the shapes of TinyLlama (24 blocks instead of 22), four shards."""
    d, f, v, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"], 256
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.empty(*shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    def block(i):
        p = f"model.layers.{i}."
        return {p + "self_attn.q_proj.weight": normal(d, d), p + "self_attn.k_proj.weight": normal(kv, d),
                p + "self_attn.v_proj.weight": normal(kv, d), p + "self_attn.o_proj.weight": normal(d, d),
                p + "mlp.gate_proj.weight": normal(f, d), p + "mlp.up_proj.weight": normal(f, d),
                p + "mlp.down_proj.weight": normal(d, f),
                p + "input_layernorm.weight": torch.ones(d, dtype=torch.bfloat16),
                p + "post_attention_layernorm.weight": torch.ones(d, dtype=torch.bfloat16)}

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weight_map = {}
    for shard in range(4):
        tensors = {}
        for i in range(shard * 6, shard * 6 + 6):
            tensors |= block(i)
        if shard == 0:
            tensors["model.embed_tokens.weight"] = normal(v, d)
        if shard == 3:
            tensors |= {"model.norm.weight": torch.ones(d, dtype=torch.bfloat16), "lm_head.weight": normal(v, d)}
        name = f"model-{shard + 1:05d}-of-00004.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path, help="keep the model here between runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        model = (arguments.folder or scratch) / "random-llama-24"
        if not (model / "model.safetensors.index.json").exists():
            write_model(model)
        spec = scratch / "job.json"
        spec.write_text(json.dumps({"model": str(model), "algorithm": "rtn"}))
        worker = arguments.build / "bin" / "ptq-worker"
        subprocess.run([worker, "run", "--spec", spec, "--output", scratch / "out"], stdout=subprocess.DEVNULL, check=True)
        report = json.loads((scratch / "out" / "report.json").read_text())
    result = {"benchmark": "memory", "checkpoint_bytes": report["size"]["before_bytes"],
              "host_peak_mib": round(report["memory"]["host_peak_bytes"] / 2**20, 1), "limit_mib": LIMIT_MIB,
              "seconds": round(report["timing"]["total_seconds"], 1)}
    print(json.dumps(result))
    return 0 if result["host_peak_mib"] <= LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
