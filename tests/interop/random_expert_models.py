"""Tiny random mixtures of experts and models with latent attention, of every option that their families have."""

import torch
from transformers import (AutoModelForCausalLM, DeepseekV2Config, DeepseekV3Config, MixtralConfig, Qwen2MoeConfig,
                          Qwen3MoeConfig)

VOCABULARY = 160

BASE = dict(vocab_size=VOCABULARY, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, max_position_embeddings=256)
MIXTRAL = dict(BASE, num_local_experts=4, num_experts_per_tok=2)
QWEN = dict(BASE, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=64)
QWEN2 = dict(QWEN, shared_expert_intermediate_size=96)
DEEPSEEK = dict(BASE, num_key_value_heads=6, n_routed_experts=8, n_shared_experts=2, moe_intermediate_size=32,
                num_experts_per_tok=3, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
DEEPSEEK2 = dict(DEEPSEEK, q_lora_rank=None)
DEEPSEEK3 = dict(DEEPSEEK, q_lora_rank=64, first_k_dense_replace=1, n_group=4, topk_group=2)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)

CASES = {
    "mixtral": (MixtralConfig, MIXTRAL),
    "mixtral top 1 of 7": (MixtralConfig, dict(MIXTRAL, num_local_experts=7, num_experts_per_tok=1)),
    "mixtral window tied": (MixtralConfig, dict(MIXTRAL, sliding_window=23, tie_word_embeddings=True)),
    "mixtral head_dim": (MixtralConfig, dict(MIXTRAL, head_dim=24, rms_norm_eps=1e-3)),
    "qwen2_moe": (Qwen2MoeConfig, QWEN2),
    "qwen2_moe normalized": (Qwen2MoeConfig, dict(QWEN2, norm_topk_prob=True)),
    "qwen2_moe mlp_only_layers": (Qwen2MoeConfig, dict(QWEN2, mlp_only_layers=[1])),
    "qwen2_moe sparse step 2, no bias": (Qwen2MoeConfig, dict(QWEN2, decoder_sparse_step=2, qkv_bias=False)),
    "qwen2_moe window": (Qwen2MoeConfig, dict(QWEN2, use_sliding_window=True, sliding_window=19, max_window_layers=2)),
    "qwen3_moe": (Qwen3MoeConfig, dict(QWEN, head_dim=32)),
    "qwen3_moe normalized, bias": (Qwen3MoeConfig, dict(QWEN, norm_topk_prob=True, attention_bias=True)),
    "qwen3_moe dense ones": (Qwen3MoeConfig, dict(QWEN, mlp_only_layers=[0], decoder_sparse_step=2)),
    "qwen3_moe window": (Qwen3MoeConfig, dict(QWEN, use_sliding_window=True, sliding_window=19)),
    "deepseek_v2": (DeepseekV2Config, DEEPSEEK2),
    "deepseek_v2 q_lora_rank, first dense": (DeepseekV2Config, dict(DEEPSEEK2, q_lora_rank=40,
                                                                    first_k_dense_replace=1)),
    "deepseek_v2 groups, scaled": (DeepseekV2Config, dict(
        DEEPSEEK2, topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=2.5)),
    "deepseek_v2 biases": (DeepseekV2Config, dict(DEEPSEEK2, q_lora_rank=40, attention_bias=True, mlp_bias=True,
                                                  first_k_dense_replace=1)),
    "deepseek_v2 yarn": (DeepseekV2Config, dict(
        DEEPSEEK2, rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.707), rms_norm_eps=1e-3)),
    "deepseek_v2 wide values": (DeepseekV2Config, dict(DEEPSEEK2, v_head_dim=40)),
    "deepseek_v3": (DeepseekV3Config, DEEPSEEK3),
    "deepseek_v3 no q_lora_rank": (DeepseekV3Config, dict(DEEPSEEK3, q_lora_rank=None, n_group=1, topk_group=1)),
    "deepseek_v3 not normalized": (DeepseekV3Config, dict(DEEPSEEK3, norm_topk_prob=False, first_k_dense_replace=0,
                                                          n_shared_experts=1, routed_scaling_factor=1.5)),
    "deepseek_v3 halves, bias": (DeepseekV3Config, dict(DEEPSEEK3, rope_interleave=False, attention_bias=True)),
    "deepseek_v3 yarn": (DeepseekV3Config, dict(DEEPSEEK3, rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0))),
    "deepseek_v3 yarn mscales": (DeepseekV3Config, dict(DEEPSEEK3, rope_parameters=dict(YARN, mscale=0.8,
                                                                                        mscale_all_dim=1.2))),
}
FAMILIES = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"]  # each also a case, the plain one


def make_model(folder, config_class, options, change=None, dtype=torch.float32):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config_class(**options))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("inv_freq", "original_inv_freq")):
                continue
            # Larger than the usual initialisation, so that attention and routing are uneven and biases count.
            tensor.copy_(torch.randn_like(tensor) * (0.1 if tensor.dim() > 1 else 0.3))
            if name.endswith("norm.weight"):
                tensor.add_(1)
            if name.endswith("gate.weight"):
                tensor.mul_(5)
        if change:
            change(model)
    model.to(dtype).save_pretrained(folder)
    return model
