"""The verdicts of `ptq-worker check` against the loaders themselves: files that torchao, compressed-tensors and
auto-round write here load in transformers exactly where the checker says so.

A file loads if from_pretrained returns, misses no weight and finds none that it has no place for.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import warnings

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

WORKER = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "bin" / "ptq-worker"
EXAMPLE = pathlib.Path(os.environ["PTQ_SOURCE_DIR"]) / "examples" / "wikilm-llama-6m"


def config(**changes):
    return transformers.LlamaConfig(**{
        "vocab_size": 320, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "tie_word_embeddings": False, "dtype": torch.bfloat16, **changes,
    })


def plain_model(folder):
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config()).to(torch.bfloat16)
    model.save_pretrained(folder)
    for file in EXAMPLE.glob("tokenizer*"):
        shutil.copy(file, folder)
    return model


def torchao_folder(folder):
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    source = folder.parent / "source"
    plain_model(source)
    quantization = transformers.TorchAoConfig(
        IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)), modules_to_not_convert=["lm_head"])
    model = transformers.AutoModelForCausalLM.from_pretrained(source, quantization_config=quantization)
    model.save_pretrained(folder)


def compressed_tensors_folder(folder):
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (QuantizationConfig, QuantizationStatus, apply_quantization_config,
                                                 preset_name_to_scheme)

    model = plain_model(folder)
    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    scheme.weights.group_size = 32
    quantization = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format="pack-quantized",
                                      quantization_status=QuantizationStatus.COMPRESSED)
    apply_quantization_config(model, quantization)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            weight = module.weight.detach().float()
            scale = weight.reshape(weight.shape[0], -1, 32).abs().amax(-1) / 7.5
            module.weight_scale.data.copy_(scale)
    ModelCompressor(quantization_config=quantization).compress_model(model)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, lambda c: c.update(quantization_config=quantization.model_dump(mode="json")))


def auto_round_folder(folder):
    from auto_round import AutoRound

    source = folder.parent / "source"
    model = plain_model(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    # Without iterations it rounds to nearest and reads no calibration text.
    AutoRound(model, tokenizer, bits=4, group_size=32, sym=True, iters=0, disable_opt_rtn=True,
              ).quantize_and_save(str(folder), format="auto_round")
    # Of some releases the folder is one below.
    nested = [path.parent for path in folder.rglob("config.json")]
    if nested and nested[0] != folder:
        for path in nested[0].iterdir():
            shutil.move(path, folder / path.name)


def edit_config(folder, change):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def loads(folder):
    """Whether transformers loads the folder, and why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, info = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu",
                                                                        output_loading_info=True)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    wrong = {key: found for key, found in info.items() if found and key in ("missing_keys", "mismatched_keys")}
    return not wrong, str(wrong)


def verdict(folder, loader="transformers"):
    result = subprocess.run([WORKER, "check", folder, "--for", loader, "--json"], capture_output=True, text=True)
    assert result.returncode in (0, 1), result.stderr
    entry, = json.loads(result.stdout)["loaders"]
    assert entry["loader"] == loader
    assert (result.returncode == 0) == entry["verdict"].startswith("loads"), entry
    return entry


WRITERS = {"torchao": torchao_folder, "compressed-tensors": compressed_tensors_folder, "auto-round": auto_round_folder}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder that a library writes, made once."""
    folders = {}

    def folder_of(method):
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method) / "model"
            folders[method].mkdir()
            WRITERS[method](folders[method])
            for file in EXAMPLE.glob("tokenizer*"):
                shutil.copy(file, folders[method])
        return folders[method]

    return folder_of


def quantization(change):
    return lambda folder: edit_config(folder, lambda c: change(c["quantization_config"]))


def without(name):
    return lambda folder: edit_tensors(folder, lambda tensors, metadata: tensors.pop(name))


def strip_names(folder):
    edit_tensors(folder, lambda tensors, metadata: metadata.pop("tensor_names"))


def own_names(folder):
    names = json.dumps(["model.layers.0.mlp.down_proj.weight"])
    edit_tensors(folder, lambda tensors, metadata: metadata.update(tensor_names=names))


DOWN = "model.layers.1.mlp.down_proj"
BROKEN = {
    ("torchao", "string type"): (quantization(lambda q: q.update(quant_type="int4_weight_only")), "quant_type"),
    ("torchao", "no names"): (strip_names, "tensor_names"),
    ("torchao", "names of one"): (own_names, "tensor_names"),
    ("torchao", "no scale"): (without(DOWN + "._weight_scale"), "_weight_scale"),
    ("torchao", "no norm"): (without("model.norm.weight"), "model.norm.weight"),
    ("compressed-tensors", "unknown key"): (
        quantization(lambda q: q["config_groups"]["group_0"]["weights"].update(packing="dense")), "packing"),
    ("compressed-tensors", "group order"): (
        quantization(lambda q: q["config_groups"]["group_0"]["weights"].update(actorder="group")), "actorder"),
    ("compressed-tensors", "no group size"): (
        quantization(lambda q: q["config_groups"]["group_0"]["weights"].update(group_size=None)), "group_size"),
    ("compressed-tensors", "other width"): (
        quantization(lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=8)), "weight_packed"),
    ("compressed-tensors", "no codes"): (without(DOWN + ".weight_packed"), DOWN),
    ("compressed-tensors", "head"): (quantization(lambda q: q.update(ignore=[])), "lm_head"),
    ("compressed-tensors", "no method"): (quantization(lambda q: q.pop("quant_method")), "quant_method"),
    ("auto-round", "no scales"): (without(DOWN + ".scales"), "scales"),
    ("auto-round", "other width"): (quantization(lambda q: q.update(bits=8)), "qweight"),
    ("auto-round", "left out"): (quantization(lambda q: q.update(extra_config={DOWN: {"bits": 16}})), "not quantized"),
}


@pytest.mark.parametrize("method", WRITERS)
def test_what_the_library_writes_loads(written, method):
    folder = written(method)
    fine, why = loads(folder)
    assert fine, why
    entry = verdict(folder)
    assert entry["verdict"].startswith("loads"), entry


@pytest.mark.parametrize("method, case", BROKEN, ids=lambda part: part.replace(" ", "_"))
def test_what_is_broken_does_not_load(written, method, case, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(written(method), folder)
    change, word = BROKEN[method, case]
    change(folder)
    entry = verdict(folder)
    assert entry["verdict"] == "does_not_load", entry
    assert any(word in problem for problem in entry["problems"]), entry
    fine, _ = loads(folder)
    assert not fine, "transformers loads what the checker refuses"


def test_torchao_in_vllm(written):
    """vLLM's way with torchao, acted out: a weight made by the config is copied into."""
    from torchao.core.config import config_from_dict
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
    from torchao.quantization import quantize_

    folder = written("torchao")
    with safe_open(folder / "model.safetensors", "pt") as file:
        weights, _ = unflatten_tensor_state_dict({name: file.get_tensor(name) for name in file.keys()}, file.metadata())
    values = json.loads((folder / "config.json").read_text())
    dummy = torch.nn.Linear(256, 128, bias=False, dtype=torch.bfloat16)
    quantize_(dummy, config_from_dict(values["quantization_config"]["quant_type"]["default"]))
    with pytest.raises(ValueError, match="copy_"):
        dummy.weight.data.copy_(weights[DOWN + ".weight"])
    problems = verdict(folder, "vllm")["problems"]
    assert any("IntxUnpackedToInt8Tensor" in problem for problem in problems), problems


def test_unusable_folders_are_status_2(tmp_path):
    result = subprocess.run([WORKER, "check", tmp_path], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no model" in result.stderr
    result = subprocess.run([WORKER, "check", EXAMPLE, "--for", "mlx"], capture_output=True, text=True)
    assert result.returncode == 2
    result = subprocess.run([WORKER, "check", EXAMPLE], capture_output=True, text=True)
    assert result.returncode == 0
    assert re.search(r"^vllm +loads$", result.stdout, re.M), result.stdout
    assert re.search(r"^llama.cpp +does not load$", result.stdout, re.M), result.stdout
