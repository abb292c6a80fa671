"""load_in_transformers.py IDS FOLDER...: logits of checkpoints as transformers loads them, in float32: FOLDER/logits.

A program of its own, because GPTQ and AWQ files need GPTQModel, which lives in another environment. Prints a JSON line
a folder: the classes of its layers, or the error.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

ids = load_file(sys.argv[1])["input_ids"]
for folder in sys.argv[2:]:
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(ids).logits.float().contiguous()
        save_file({"logits": logits}, f"{folder}/logits")
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        print(json.dumps({"folder": folder, "layers": kinds}), flush=True)
    except Exception as error:  # one folder's failure is not the others'
        print(json.dumps({"folder": folder, "error": f"{type(error).__name__}: {error}"}), flush=True)
