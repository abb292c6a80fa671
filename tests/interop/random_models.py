"""Tiny random models of every family, with weights large enough for each option to count."""

import copy

import torch
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, GraniteConfig,
                          LlamaConfig, MistralConfig, Olmo2Config, OPTConfig, Phi3Config, Qwen2Config, Qwen3Config,
                          SeedOssConfig, Starcoder2Config)

VOCABULARY = 96
HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
SMALL = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3, max_position_embeddings=128,
             bos_token_id=None, eos_token_id=None, pad_token_id=None, **HEADS)
WITHOUT_GROUPS = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}

# Configuration class and options of the plain case.
FAMILIES = {
    "llama": (LlamaConfig, SMALL),
    "mistral": (MistralConfig, dict(SMALL, sliding_window=None)),
    "qwen2": (Qwen2Config, SMALL),
    "qwen3": (Qwen3Config, dict(SMALL, head_dim=16)),
    "gemma2": (Gemma2Config, dict(SMALL, head_dim=16, sliding_window=12, query_pre_attn_scalar=16,
                                  attn_logit_softcapping=4.0, final_logit_softcapping=3.0)),
    "gemma3_text": (Gemma3TextConfig, dict(SMALL, head_dim=16, sliding_window=12, query_pre_attn_scalar=16,
                                           layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "phi3": (Phi3Config, dict(SMALL, original_max_position_embeddings=128)),
    "olmo2": (Olmo2Config, SMALL),
    "granite": (GraniteConfig, dict(SMALL, attention_multiplier=0.3, embedding_multiplier=2.5, residual_multiplier=0.4,
                                    logits_scaling=1.7)),
    "seed_oss": (SeedOssConfig, dict(SMALL, head_dim=24)),
    "starcoder2": (Starcoder2Config, SMALL),
    "gpt_neox": (GPTNeoXConfig, WITHOUT_GROUPS),
    "opt": (OPTConfig, dict(vocab_size=VOCABULARY, hidden_size=64, ffn_dim=96, num_hidden_layers=3,
                            num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=64,
                            bos_token_id=None, eos_token_id=None, pad_token_id=None)),
    "gpt2": (GPT2Config, dict(vocab_size=VOCABULARY, n_embd=64, n_inner=96, n_layer=3, n_head=4, n_positions=128,
                              bos_token_id=None, eos_token_id=None)),
}


def save_random_model(folder, family, dtype=torch.float32, max_shard_size="5GB", **options):
    """Returns the model as it was stored, in float32."""
    kind, plain = FAMILIES[family]
    config = kind(**{**plain, **options})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    plus_one = family.startswith("gemma")  # whose norms add it themselves
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            vector = parameter.dim() == 1
            parameter.copy_(torch.randn_like(parameter) * (0.3 if vector else 0.15))
            norm = vector and name.endswith("weight")
            if norm and not plus_one:
                parameter.add_(1)
            parameter.copy_(parameter.to(dtype))
    # The copy alone is converted: in the model the buffers of rotary embeddings would lose their precision too.
    copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return model.eval()
