"""load_in_transformers.py IDS FOLDER...: logits of checkpoints as their loaders have them, in float32: FOLDER/logits.

GPTQ and AWQ folders are opened by GPTQModel, which lives in another environment: by way of transformers, or by
GPTQModel.load where there are routed experts, which transformers leaves out. All others are opened by transformers.
Prints a JSON line a folder: the classes of its layers, or the error.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file


def load(folder):
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    if experts and config.get("quantization_config", {}).get("quant_method") in ("gptq", "awq"):
        from gptqmodel import GPTQModel
        return GPTQModel.load(folder, device="cpu", dtype=torch.float32).model
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32)


ids = load_file(sys.argv[1])["input_ids"]
for folder in sys.argv[2:]:
    try:
        model = load(folder).eval()
        with torch.no_grad():
            logits = model(ids).logits.float().contiguous()
        save_file({"logits": logits}, f"{folder}/logits")
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        print("\n" + json.dumps({"folder": folder, "layers": kinds}), flush=True)
    except Exception as error:  # one folder's failure is not the others'
        print("\n" + json.dumps({"folder": folder, "error": f"{type(error).__name__}: {error}"}), flush=True)
