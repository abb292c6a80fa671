"""Windows of token ids against transformers' tokenizer, on the example texts."""

import json
import os
import pathlib
import subprocess

import pytest
import torch
import transformers
from safetensors.torch import load_file

TOOL = pathlib.Path(os.environ["PTQ_BUILD_DIR"]) / "tests" / "format_tool"
EXAMPLES = pathlib.Path(os.environ["PTQ_SOURCE_DIR"]) / "examples"
MODEL = EXAMPLES / "wikilm-llama-6m"


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(MODEL)


def windows(tmp_path, *arguments):
    out = tmp_path / "ids.safetensors"
    subprocess.run([TOOL, "tokens", *map(str, arguments), out], check=True)
    return load_file(out)["input_ids"]


def test_calibration_documents_end_with_eos_and_are_joined(tmp_path, tokenizer):
    ids = windows(tmp_path, "calibration", EXAMPLES / "calibration.jsonl", MODEL, 128, 512)
    expected = []
    with open(EXAMPLES / "calibration.jsonl", encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            expected += tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            if len(expected) >= 128 * 512:
                break
    assert torch.equal(ids, torch.tensor(expected[: 128 * 512]).view(128, 512))


def test_evaluation_is_the_whole_text_without_its_tail(tmp_path, tokenizer):
    ids = windows(tmp_path, "evaluation", EXAMPLES / "evaluation.txt", MODEL, 0, 512)
    text = (EXAMPLES / "evaluation.txt").read_bytes().decode("utf-8")
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.shape[0] == len(expected) // 512 > 100
    assert torch.equal(ids.flatten(), torch.tensor(expected[: ids.numel()]))
