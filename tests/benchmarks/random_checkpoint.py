#!/usr/bin/env python3
"""A Llama checkpoint of random weights, made on the spot, for what depends on a model's shape alone: time and memory.

random_checkpoint.py SHAPE FOLDER [--layers N] [--vocab N] [--calibration FILE [--samples 160] [--length 2048]]
Weights are normal with standard deviation 0.02, norms 1, in bfloat16; the same on every run on a machine. They are made
on the GPU where there is one and written shard by shard: the host holds one shard, and it takes about the disk's time.
--layers and --vocab keep it small where blocks alone are of interest. --calibration also writes random token ids.
"""
import argparse
import json
import math
import pathlib

SHARD_BYTES = 2e9


def llama(hidden, intermediate, heads, kv_heads, head_dim, layers, vocab, tied=False, theta=10000.0, positions=2048):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
            "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab,
            "max_position_embeddings": positions, "rms_norm_eps": 1e-5, "rope_theta": theta, "tie_word_embeddings": tied,
            "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "eos_token_id": 2, "torch_dtype": "bfloat16"}


SHAPES = {
    "llama-3.1-8b": llama(4096, 14336, 32, 8, 128, 32, 128256, theta=500000.0, positions=131072),
    "qwen2.5-0.5b-shaped": llama(896, 4864, 14, 2, 64, 24, 151936, tied=True, theta=1000000.0, positions=32768),
    "tinyllama-24": llama(2048, 5632, 32, 4, 64, 24, 32000),  # TinyLlama's, 24 blocks instead of 22
    "tiny": llama(128, 256, 2, 1, 64, 4, 512),
}


def tensor_shapes(config):
    """{name: shape} in the order of the files."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    shapes = {"model.embed_tokens.weight": (v, d)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": (d,), p + "self_attn.q_proj.weight": (q, d),
                   p + "self_attn.k_proj.weight": (kv, d), p + "self_attn.v_proj.weight": (kv, d),
                   p + "self_attn.o_proj.weight": (d, q), p + "post_attention_layernorm.weight": (d,),
                   p + "mlp.gate_proj.weight": (f, d), p + "mlp.up_proj.weight": (f, d), p + "mlp.down_proj.weight": (d, f)}
    shapes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    return shapes


def split_into_shards(shapes):
    shards, size = [{}], 0
    for name, shape in shapes.items():
        tensor_bytes = 2 * math.prod(shape)
        if size + tensor_bytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += tensor_bytes
    return shards


def write_checkpoint(folder, config, seed=0):
    """The index is written last: where it is, the checkpoint is complete."""
    import torch
    from safetensors.torch import save_file
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)

    def random_tensor(shape):
        tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
        return (tensor.fill_(1) if len(shape) == 1 else tensor.normal_(0, 0.02, generator=generator)).cpu()

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shards, weight_map, total = split_into_shards(tensor_shapes(config)), {}, 0
    for i, shapes in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: random_tensor(shape) for key, shape in shapes.items()}
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if device == "cuda":
        torch.cuda.empty_cache()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return total


def write_calibration(path, vocab, samples, length, seed=1):
    """`input_ids` [samples, length], each below `vocab`."""
    import torch
    from safetensors.torch import save_file
    ids = torch.randint(vocab, (samples, length), generator=torch.Generator().manual_seed(seed))
    save_file({"input_ids": ids.to(torch.int32)}, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calibration", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--length", type=int, default=2048)
    args = parser.parse_args()
    config = SHAPES[args.shape]
    config = config | {"num_hidden_layers": args.layers or config["num_hidden_layers"],
                       "vocab_size": args.vocab or config["vocab_size"]}
    total = write_checkpoint(args.folder, config, args.seed)
    print(f"{args.folder}: {total / 1e9:.2f} GB")
    if args.calibration:
        write_calibration(args.calibration, config["vocab_size"], args.samples, args.length)
        print(f"{args.calibration}: {args.samples} x {args.length} tokens")


if __name__ == "__main__":
    main()
