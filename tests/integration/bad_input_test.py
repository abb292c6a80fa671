"""Bad input against the real binaries: the right status, one clear sentence, nothing left behind, the server goes on."""
import hashlib
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import time
import uuid

import pytest

from harness import BIN, CALIBRATION, QUICK_JOB, SLOW_JOB, Server, tiny_config, tiny_tensors, write_tiny_model


def header_of(path):
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + length]), data[8 + length:]


def write_raw(path, header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def edit_header(edit):
    def apply(folder):
        path = folder / "model.safetensors"
        header, body = header_of(path)
        write_raw(path, edit(header) or header, body)
    return apply


def edit_config(**changes):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            config.pop(key) if value is None else config.__setitem__(key, value)
        (folder / "config.json").write_text(json.dumps(config))
    return apply


def truncate(folder):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def overlap(header):
    first, second = [k for k in header if k != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]


def duplicate_key(folder):
    path = folder / "model.safetensors"
    header, body = header_of(path)
    text = json.dumps(header)
    name = "model.norm.weight"
    write_raw(path, (text[:-1] + f', "{name}": ' + json.dumps(header[name]) + "}").encode(), body)


def oversized_header(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def missing_shard(folder):
    header, _ = header_of(folder / "model.safetensors")
    weight_map = {name: "model.safetensors" for name in header if name != "__metadata__"}
    weight_map["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def escaping_shard(folder):
    header, _ = header_of(folder / "model.safetensors")
    weight_map = {name: "../model.safetensors" for name in header if name != "__metadata__"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


def pickle_in_disguise(folder):
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))


def missing_tensor(header):
    # Keep the bytes covered: give the tensor another name.
    header["model.layers.0.mlp.other"] = header.pop("model.layers.0.mlp.up_proj.weight")


REFUSED_MODELS = {
    "truncated": (truncate, r"model\.safetensors"),
    "overlapping": (edit_header(overlap), r"overlap|offset|touch"),
    "duplicate key": (duplicate_key, r"model\.norm\.weight.*(repeated|twice|duplicate)|(repeated|twice|duplicate).*model\.norm\.weight"),
    "oversized header": (oversized_header, r"header"),
    "missing shard": (missing_shard, r"model-00002-of-00002\.safetensors"),
    "../ in weight_map": (escaping_shard, r"\.\./model\.safetensors"),
    "only pickle": (only_pickle, r"pickle|safetensors"),
    "pickle in disguise": (pickle_in_disguise, r"ZIP|pickle|zip"),
    "unknown architecture": (edit_config(model_type="mamba", architectures=["MambaForCausalLM"]), r"mamba"),
    "auto_map of an unknown type": (edit_config(model_type="mine", auto_map={"AutoModel": "x.Y"}), r"remote code|auto_map"),
    "already quantized": (edit_config(quantization_config={"quant_method": "gptq"}), r"already quantized|quantization_config"),
    "hidden size contradicts": (edit_config(hidden_size=128), r"model\.\w+.*(shape|128)"),
    "too many layers": (edit_config(num_hidden_layers=9), r"model\.layers\.4"),
    "missing tensor": (edit_header(missing_tensor), r"model\.layers\.0\.mlp\.up_proj\.weight"),
    "zero hidden size": (edit_config(hidden_size=0), r"hidden_size"),
    "huge vocabulary": (edit_config(vocab_size=2**40), r"vocab_size"),
    "heads that don't divide": (edit_config(num_attention_heads=4, num_key_value_heads=3), r"num_key_value_heads"),
    "unknown rope type": (edit_config(rope_scaling={"rope_type": "spiral"}), r"spiral"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{,}"), r"config\.json"),
    "config repeats a key": (lambda f: (f / "config.json").write_text('{"model_type":"llama","model_type":"x"}'), r"repeated"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json"),
}


@pytest.mark.parametrize("case", REFUSED_MODELS)
def test_a_bad_checkpoint_is_refused_at_submission(shared_server, tmp_path, case):
    breakage, message = REFUSED_MODELS[case]
    folder = write_tiny_model(tmp_path / "model")
    breakage(folder)
    jobs = json.loads(shared_server.ptq("list", "--json").stdout)
    began = time.monotonic()
    result = shared_server.ptq("submit", folder, *QUICK_JOB, code=2)
    assert time.monotonic() - began < 3, "a second for the server, the rest for starting a client and uploading"
    expect_one_sentence(result, message)
    assert json.loads(shared_server.ptq("list", "--json").stdout) == jobs


def expect_one_sentence(result, message):
    assert re.search(message, result.stderr, re.S), result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) <= 3, result.stderr
    for noise in ("Traceback", "terminate called", "what():", "backtrace", "grpc_status"):
        assert noise not in result.stderr


DATA = {
    "empty": (b"", "c.jsonl", r"empty"),
    "invalid UTF-8": (b'{"text": "good"}\n{"text": "\xff"}\n', "c.jsonl", r"line 2"),
    "invalid JSON": (b'{"text": "good"}\n{"text": "good"}\n{"text"}\n', "c.jsonl", r"line 3"),
    "no text": (b'{"words": "good"}\n', "c.jsonl", r"line 1.*text|text.*line 1"),
    "text is a number": (b'{"text": 3}\n', "c.jsonl", r"line 1"),
    "binary text file": (b"abc\xff\xfe", "c.txt", r"UTF-8"),
    "another format": (b"a,b\n", "c.csv", r"csv|\.jsonl"),
    "no input_ids": (struct.pack("<Q", 2) + b"{}", "c.safetensors", r"input_ids"),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_calibration_is_refused_at_submission(shared_server, tiny_model, tmp_path, case):
    data, name, message = DATA[case]
    (tmp_path / name).write_bytes(data)
    result = shared_server.ptq("submit", tiny_model, "--calibration", tmp_path / name, *SLOW_JOB, code=2)
    expect_one_sentence(result, message)


FLAGS = {
    "bits 1": (["--bits", "1"], r"bits.*1.*2"),
    "bits 9": (["--bits", "9"], r"bits.*9.*8|8.*9"),
    "a group size that divides nothing": (["--group-size", "48"], r"48.*(skip|down_proj)"),
    "a rule that matches nothing": (["--group-size", "32", "--rule", "model.nothing:bits=8"], r"model\.nothing"),
    "a rule that is no pattern": (["--group-size", "32", "--rule", "(:bits=8"], r"rule|pattern"),
    "a rule without a colon": (["--group-size", "32", "--rule", "lm_head"], r"lm_head"),
    "torchao's rule for gptq": (["--group-size", "32", "--algorithm", "gptq", "--scale-rule", "torchao"], r"scale.rule|torchao"),
    "an unknown algorithm": (["--algorithm", "magic"], r"magic"),
    "an unknown recipe": (["--recipe", "quick"], r"quick.*paper, fast, default, best"),
    "an unknown precision": (["--tuning-precision", "fp16"], r"fp16.*auto, bf16, fp8"),
    "auto-round's iterations for rtn": (["--group-size", "32", "--iterations", "5"], r"--iterations: 5.*auto-round"),
    "gptq without calibration": (["--algorithm", "gptq", "--group-size", "32"], r"--calibration"),
    "a request id that is none": (["--group-size", "32", "--request-id", "x"], r"request"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_a_bad_spec_is_refused_at_submission(shared_server, tiny_model, case):
    flags, message = FLAGS[case]
    algorithm = [] if "--algorithm" in flags else ["--algorithm", "rtn"]
    result = shared_server.ptq("submit", tiny_model, *algorithm, *flags, code=2)
    assert re.search(message, result.stderr, re.S | re.I), result.stderr


def test_the_refusal_of_a_group_size_names_layers_and_the_rule_that_helps(shared_server, tiny_model):
    result = shared_server.ptq("submit", tiny_model, "--algorithm", "rtn", "--group-size", "128", code=2)
    assert "q_proj" in result.stderr and ":skip" in result.stderr


def test_auto_map_on_a_supported_type_is_ignored_with_a_warning(shared_server, tmp_path):
    folder = write_tiny_model(tmp_path / "model", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    job = shared_server.submit(folder, *QUICK_JOB, calibration=None)
    shared_server.ptq("watch", job)
    warnings = json.loads(shared_server.ptq("report", job, "--json").stdout)["warnings"]
    assert any("auto_map" in w for w in warnings)


@pytest.fixture(scope="module")
def quantized(tiny_model, tmp_path_factory):
    """Folders by a word: 3 bits, 4 bits with zero points."""
    root = tmp_path_factory.mktemp("quantized")
    for name, flags in {"w3": {"bits": 3}, "w4_asym": {"bits": 4, "asymmetric": True}}.items():
        spec = {"model": str(tiny_model), "algorithm": "rtn", "group_size": 32, "format": "compressed-tensors",
                "device": "cpu", **flags}
        (root / f"{name}.json").write_text(json.dumps(spec))
        subprocess.run([BIN / "ptq-worker", "run", "--spec", root / f"{name}.json", "--output", root / name], check=True,
                       capture_output=True)
    return root


def test_what_is_not_quantized_is_not_converted(shared_server, tiny_model, tmp_path):
    output = ["--format", "gguf", "--output", tmp_path / "out"]
    result = shared_server.ptq("convert", tiny_model, *output, code=2)
    expect_one_sentence(result, r"no quantization_config: the folder holds no quantized model")
    expect_one_sentence(shared_server.ptq("convert", tmp_path / "absent", *output, code=2), r"there is no folder")
    expect_one_sentence(shared_server.ptq("convert", tmp_path / "absent.gguf", *output, code=2), r"absent\.gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(16))
    expect_one_sentence(shared_server.ptq("convert", tmp_path / "model.gguf", *output, code=2), r"general\.architecture")
    assert not (tmp_path / "out").exists()


def test_a_format_that_cannot_hold_it_is_refused_at_submission(shared_server, quantized, tmp_path):
    for folder, name, reason in [("w3", "gguf", r"_proj: it has no type for 3 bits"),
                                 ("w3", "awq", r"_proj: it has 3 bits, and the format 4"),
                                 ("w3", "onnx", r"onnx.*is none of affine")]:
        result = shared_server.ptq("convert", quantized / folder, "--format", name, "--output", tmp_path / "out", code=2)
        expect_one_sentence(result, reason)


def test_a_value_that_a_format_cannot_hold_fails_the_job_by_its_tensor(server, quantized, tmp_path):
    from safetensors.torch import load_file, save_file
    model = shutil.copytree(quantized / "w4_asym", tmp_path / "m")
    name = "model.layers.1.mlp.up_proj.weight_zero_point"
    index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = load_file(model / index[name])
    tensors[name][:] = 0  # which GPTQ stores less one
    save_file(tensors, model / index[name], {"format": "pt"})
    result = server.ptq("convert", model, "--format", "gptq", "--output", tmp_path / "out", code=1)
    assert re.search(r"model\.layers\.1\.mlp\.up_proj.*zero point.*compressed-tensors", result.stderr), result.stderr
    job, = json.loads(server.ptq("list", "--json").stdout)
    assert job["state"] == "FAILED" and job["error"]["code"] in ("FAILED_PRECONDITION", 9) and job["attempt"] == 1


def test_a_quantized_model_is_not_quantized_again(shared_server, quantized):
    result = shared_server.ptq("submit", quantized / "w3", *QUICK_JOB, code=2)
    expect_one_sentence(result, r"already quantized: start from the original weights.*`convert`")


# What only the worker can see: the job fails with the same kind of status, exit 1.

def failed_job(server, model, flags, calibration=CALIBRATION):
    result = server.ptq("quantize", model, *(["--calibration", calibration] if calibration else []), "--output",
                        pathlib.Path(model).parent / "out", *flags, code=1)
    job = json.loads(server.ptq("list", "--json").stdout)
    newest = max(job, key=lambda j: j["create_time"])
    assert newest["state"] == "FAILED"
    assert not (pathlib.Path(model).parent / "out" / "config.json").exists()
    return newest["error"], result


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_weights_are_named(server, tmp_path, value):
    tensors = tiny_tensors(tiny_config())
    tensors["model.layers.2.mlp.down_proj.weight"][3, 5] = value
    error, result = failed_job(server, write_tiny_model(tmp_path / "m", tensors), QUICK_JOB, None)
    assert error["code"] in ("INVALID_ARGUMENT", 3)
    assert "model.layers.2.mlp.down_proj.weight" in error["message"]
    assert "model.layers.2.mlp.down_proj.weight" in result.stderr + result.stdout


def test_too_few_tokens_say_how_many_there_are(server, tiny_model, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "one short line"}\n')
    model = shutil.copytree(tiny_model, tmp_path / "m")
    error, _ = failed_job(server, model, SLOW_JOB, tmp_path / "c.jsonl")
    assert error["code"] in ("INVALID_ARGUMENT", 3)
    assert re.search(r"\b\d+ tokens", error["message"]) and "16 samples of 128" in error["message"]


def test_text_without_a_tokenizer_is_refused_with_a_hint(server, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "m")
    (model / "tokenizer.json").unlink()
    result = server.ptq("submit", model, "--calibration", CALIBRATION, *SLOW_JOB, code=None)
    if result.returncode == 0:  # seen by the worker only
        assert server.ptq("watch", result.stdout.strip(), code=1)
        message = server.status(result.stdout.strip())["error"]["message"]
    else:
        assert result.returncode == 2
        message = result.stderr
    assert "input_ids" in message


def test_ids_outside_the_vocabulary_are_refused(server, tiny_model, tmp_path):
    import torch
    from safetensors.torch import save_file
    save_file({"input_ids": torch.full((16, 128), 4096, dtype=torch.int64)}, tmp_path / "c.safetensors")
    error, _ = failed_job(server, shutil.copytree(tiny_model, tmp_path / "m"), SLOW_JOB, tmp_path / "c.safetensors")
    assert "4096" in error["message"]


def test_a_worker_that_keeps_dying_fails_the_job_and_not_the_server(tiny_model, tmp_path):
    dying = tmp_path / "dying-worker"
    dying.write_text("#!/bin/sh\nkill -KILL $$\n")
    dying.chmod(0o755)
    with Server(tmp_path / "data", "--worker", dying) as server:
        job = server.submit(tiny_model, *QUICK_JOB, calibration=None)
        server.ptq("watch", job, code=1)
        status = server.status(job)
        assert status["state"] == "FAILED" and status["attempt"] == 3
        assert "SIGKILL" in status["error"]["message"] or "signal 9" in status["error"]["message"]
        server.ptq("capabilities")


def test_unknown_jobs(shared_server):
    for command in (["status"], ["watch"], ["cancel"], ["resume"], ["logs"], ["report"], ["delete"]):
        result = shared_server.ptq(*command, "no-such-job", code=2)
        assert "no-such-job" in result.stderr


# Uploads, by the protocol itself.

def write_requests(name, pieces):
    from google.bytestream import bytestream_pb2 as bs
    for offset, data, last in pieces:
        yield bs.WriteRequest(resource_name=name, write_offset=offset, data=data, finish_write=last)


def upload_name(data, size=None, digest=None):
    digest = digest or hashlib.sha256(data).hexdigest()
    return f"tenants/default/uploads/{uuid.uuid4()}/blobs/{digest}/{len(data) if size is None else size}"


def test_upload_protocol_errors(shared_server):
    import grpc
    from google.bytestream import bytestream_pb2 as bs, bytestream_pb2_grpc
    stub = bytestream_pb2_grpc.ByteStreamStub(shared_server.channel())
    data = os.urandom(4096)

    def refused(name, pieces, *codes):
        with pytest.raises(grpc.RpcError) as error:
            stub.Write(write_requests(name, pieces), timeout=20)
        assert error.value.code() in codes, error.value
        return error.value

    refused(upload_name(data, digest="0" * 64), [(0, data, True)], grpc.StatusCode.INVALID_ARGUMENT)
    refused(upload_name(data), [(100, data, True)], grpc.StatusCode.OUT_OF_RANGE)
    refused(upload_name(data, size=10), [(0, data, True)], grpc.StatusCode.INVALID_ARGUMENT)
    refused(upload_name(data, size=10**6), [(0, data, True)], grpc.StatusCode.INVALID_ARGUMENT)
    refused("nonsense", [(0, data, True)], grpc.StatusCode.INVALID_ARGUMENT)
    refused(upload_name(data).replace("default", "other"), [(0, data, True)], grpc.StatusCode.NOT_FOUND)
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Read(bs.ReadRequest(resource_name=f"tenants/default/blobs/{'1' * 64}/5"), timeout=20))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND

    # An interrupted upload continues where its durable part ends.
    name = upload_name(data)
    half = data[:1000]
    try:
        stub.Write(write_requests(name, [(0, half, False)]), timeout=20)
    except grpc.RpcError:
        pass
    committed = stub.QueryWriteStatus(bs.QueryWriteStatusRequest(resource_name=name), timeout=20).committed_size
    assert 0 <= committed <= 1000
    done = stub.Write(write_requests(name, [(committed, data[committed:], True)]), timeout=20)
    assert done.committed_size == len(data)
    back = b"".join(r.data for r in stub.Read(bs.ReadRequest(
        resource_name=f"tenants/default/blobs/{hashlib.sha256(data).hexdigest()}/{len(data)}", read_offset=10)))
    assert back == data[10:]


def test_missing_blobs_are_listed_in_the_details(shared_server):
    import grpc
    from google.rpc import error_details_pb2, status_pb2
    from ptq.v1 import blob_store_pb2 as blobs, model_service_pb2 as ms, model_service_pb2_grpc, resources_pb2 as res
    stub = model_service_pb2_grpc.ModelServiceStub(shared_server.channel())
    node = blobs.FileNode(path="config.json", digest=blobs.Digest(hash="2" * 64, size_bytes=7))
    with pytest.raises(grpc.RpcError) as error:
        stub.CreateModel(ms.CreateModelRequest(parent="tenants/default", source=res.Source(
            manifest=res.Source.Manifest(files=[node]))), timeout=20)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    status = status_pb2.Status.FromString(dict(error.value.trailing_metadata())["grpc-status-details-bin"])
    kinds = {d.type_url.rsplit(".", 1)[1]: d for d in status.details}
    assert {"ErrorInfo", "PreconditionFailure"} <= kinds.keys()
    failure = error_details_pb2.PreconditionFailure()
    kinds["PreconditionFailure"].Unpack(failure)
    assert failure.violations[0].type == "MISSING" and "2" * 64 in failure.violations[0].subject


@pytest.mark.parametrize("path", ["../config.json", "/etc/passwd", "a/../../b", "", "a\\b", "model\x00.json"])
def test_manifest_paths_stay_inside(shared_server, path):
    import grpc
    from ptq.v1 import blob_store_pb2 as blobs, model_service_pb2 as ms, model_service_pb2_grpc, resources_pb2 as res
    stub = model_service_pb2_grpc.ModelServiceStub(shared_server.channel())
    node = blobs.FileNode(path=path, digest=blobs.Digest(hash="3" * 64, size_bytes=7))
    with pytest.raises(grpc.RpcError) as error:
        stub.CreateModel(ms.CreateModelRequest(parent="tenants/default", source=res.Source(
            manifest=res.Source.Manifest(files=[node]))), timeout=20)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT

