"""load_in_transformers.py FOLDER IDS OUT: the logits of a checkpoint as transformers loads it, in float32.

A program of its own, because GPTQ and AWQ files need GPTQModel, which lives in another environment.
"""

import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

folder, ids, out = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32).eval()
kinds = sorted({type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")})
with torch.no_grad():
    logits = model(load_file(ids)["input_ids"]).logits.float().contiguous()
save_file({"logits": logits}, out)
print("layers:", ", ".join(kinds))
