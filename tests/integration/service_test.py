"""The three programs together: what the issue tracker calls the whole path, and what survives which accident."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from harness import BIN, CALIBRATION, EXAMPLES, QUICK_JOB, SLOW_JOB, SOURCE, Server, folder_digests

FILES = {"config.json", "generation_config.json", "model.safetensors.index.json", "report.json", "report.html",
         "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tmp_path_factory):
    """Digests of the slow job's output when nothing interrupts it: made without a server."""
    folder = tmp_path_factory.mktemp("undisturbed")
    keys = {flag[2:].replace("-", "_"): value for flag, value in zip(SLOW_JOB[::2], SLOW_JOB[1::2])}
    spec = {k: int(v) if v.isdigit() else v for k, v in keys.items()}
    spec |= {"model": str(tiny_model), "calibration": str(CALIBRATION)}
    (folder / "job.json").write_text(json.dumps(spec))
    subprocess.run([BIN / "ptq-worker", "run", "--spec", folder / "job.json", "--output", folder / "out"], check=True,
                   capture_output=True)
    return folder_digests(folder / "out")


def test_quantize_uploads_runs_downloads_and_reuses(server, tiny_model, tmp_path):
    out = tmp_path / "out"
    server.ptq("quantize", tiny_model, "--output", out, *QUICK_JOB, "--evaluation", EXAMPLES / "evaluation.txt",
               "--evaluation-window", 128, "--evaluation-samples", 4)
    assert {p.name for p in out.iterdir()} >= FILES
    shards = [p.name for p in out.iterdir() if re.fullmatch(r"model-0000\d-of-00006\.safetensors", p.name)]
    assert len(shards) == 6
    report = json.loads((out / "report.json").read_bytes())
    assert report["size"]["bits_per_weight"] == pytest.approx(4 + 16 / 32)
    assert report["evaluation"]["quantized"]["mean_kld"] > 0
    first, = json.loads(server.ptq("list", "--json").stdout)
    assert first["state"] == "SUCCEEDED"

    # The same work again: no worker runs, the same result comes back.
    again = server.submit(tiny_model, *QUICK_JOB, "--evaluation", EXAMPLES / "evaluation.txt",
                          "--evaluation-window", 128, "--evaluation-samples", 4, calibration=None)
    status = server.status(again)
    assert again != first["name"] and status["state"] == "SUCCEEDED" and status["reused"]
    assert status["result_digest"] == first["result_digest"]
    server.ptq("download", again, tmp_path / "again")
    assert folder_digests(tmp_path / "again") == folder_digests(out)

    # Unless it is told to do it again: the same bytes all the same.
    fresh = server.submit(tiny_model, *QUICK_JOB, "--no-reuse", "--evaluation", EXAMPLES / "evaluation.txt",
                          "--evaluation-window", 128, "--evaluation-samples", 4, calibration=None)
    server.ptq("watch", fresh)
    assert not server.status(fresh).get("reused")
    assert server.status(fresh)["result_digest"] == first["result_digest"]


def test_a_second_upload_sends_nothing(server, tiny_model):
    server.submit(tiny_model, *QUICK_JOB, calibration=None)
    blobs = sorted(p for p in (server.data_dir / "blobs").rglob("*") if p.is_file())
    before = {p: p.stat().st_mtime_ns for p in blobs}
    server.submit(tiny_model, *QUICK_JOB, "--no-reuse", calibration=None)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in (server.data_dir / "blobs").rglob("*") if p.is_file()}.items()


def test_watch_gives_every_event_once_across_a_reconnect(server, tiny_model):
    from ptq.v1 import quantization_service_pb2 as qs, quantization_service_pb2_grpc
    job = server.submit(tiny_model, *SLOW_JOB)
    jobs = quantization_service_pb2_grpc.QuantizationServiceStub(server.channel())
    blocks, last = [], 0
    for connection in range(20):
        stream = jobs.WatchQuantizationJob(qs.WatchRequest(name=job, after_sequence=last))
        fresh, ended = 0, False
        for event in stream:
            if event.HasField("heartbeat"):
                continue
            if event.sequence > last:
                last, fresh = event.sequence, fresh + 1
                if event.HasField("block"):
                    blocks.append(event.block.block)
            ended = event.HasField("snapshot") and event.snapshot.state == qs.QuantizationJob.SUCCEEDED
            if connection < 3 and event.HasField("block"):
                stream.cancel()
                break
        if ended:
            break
    assert connection >= 2, "the stream was cut at least twice"
    assert blocks == [0, 1, 2, 3]


def test_server_killed_and_restarted_mid_job(server, tiny_model, undisturbed, tmp_path):
    job = server.submit(tiny_model, *SLOW_JOB)
    watcher = subprocess.Popen([BIN / "ptq", "--server", server.address, "watch", job], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    server.wait_for_blocks(job, 1)
    server.stop(signal.SIGKILL)
    time.sleep(1)
    server.start()
    assert watcher.wait(120) == 0, watcher.stdout.read()
    server.ptq("download", job, tmp_path / "out")
    assert folder_digests(tmp_path / "out") == undisturbed
    assert "orphan" not in subprocess.run(["pgrep", "-fa", "ptq-worker.*" + str(server.data_dir)], capture_output=True,
                                          text=True).stdout


def test_server_terminated_drains_and_the_job_goes_on(server, tiny_model, undisturbed, tmp_path):
    job = server.submit(tiny_model, *SLOW_JOB)
    server.wait_for_blocks(job, 1)
    began = time.monotonic()
    assert server.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 25
    server.start()
    server.ptq("watch", job)
    server.ptq("download", job, tmp_path / "out")
    assert folder_digests(tmp_path / "out") == undisturbed


def workers_of(server):
    found = subprocess.run(["pgrep", "-f", f"ptq-worker.*{server.data_dir}"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def test_worker_killed_is_replaced_and_the_bytes_are_the_same(server, tiny_model, undisturbed, tmp_path):
    job = server.submit(tiny_model, *SLOW_JOB)
    server.wait_for_blocks(job, 2)
    for pid in workers_of(server):
        os.kill(pid, signal.SIGKILL)
    server.ptq("watch", job)
    status = server.status(job)
    assert status["state"] == "SUCCEEDED" and status["attempt"] == 2
    server.ptq("download", job, tmp_path / "out")
    assert folder_digests(tmp_path / "out") == undisturbed


def test_cancel_then_resume(server, tiny_model, undisturbed, tmp_path):
    job = server.submit(tiny_model, *SLOW_JOB)
    server.wait_for_blocks(job, 1)
    began = time.monotonic()
    server.ptq("cancel", job)
    server.wait_for(job, lambda s: s["state"] == "CANCELLED", 6)
    assert time.monotonic() - began < 5.5
    assert workers_of(server) == []
    assert server.ptq("watch", job, code=1)
    late = server.ptq("cancel", job, code=2)
    assert "CANCELLED" in late.stderr
    server.ptq("resume", job)
    server.ptq("watch", job)
    server.ptq("download", job, tmp_path / "out")
    assert folder_digests(tmp_path / "out") == undisturbed


def test_cancel_while_queued(server, tiny_model):
    running = server.submit(tiny_model, *SLOW_JOB)
    queued = server.submit(tiny_model, *SLOW_JOB, "--seed", 7)
    assert server.status(queued)["state"] == "QUEUED"
    server.ptq("cancel", queued)
    server.wait_for(queued, lambda s: s["state"] == "CANCELLED", 3)
    server.ptq("cancel", running)
    server.wait_for(running, lambda s: s["state"] == "CANCELLED", 6)


def test_request_id_makes_submission_idempotent(server, tiny_model):
    request = ["--request-id", "6f1c2f64-97c5-4a4e-8c5c-2f3d9c1b7a10"]
    first = server.submit(tiny_model, *QUICK_JOB, *request, calibration=None)
    assert server.submit(tiny_model, *QUICK_JOB, *request, calibration=None) == first
    other = server.ptq("submit", tiny_model, "--algorithm", "rtn", "--bits", 8, "--group-size", 32, *request, code=2)
    assert "request" in other.stderr.lower()
    assert len(json.loads(server.ptq("list", "--json").stdout)) == 1


def test_validate_only_prints_a_spec_that_the_worker_takes(server, tiny_model, tmp_path):
    result = server.ptq("submit", tiny_model, *QUICK_JOB, "--validate-only", "--json")
    spec = json.loads(result.stdout)
    assert spec["algorithm"] == "rtn" and spec["group_size"] == 32 and spec["seed"] == 42
    assert json.loads(server.ptq("list", "--json").stdout) == []
    spec["model"] = str(tiny_model)
    (tmp_path / "job.json").write_text(json.dumps(spec))
    subprocess.run([BIN / "ptq-worker", "run", "--spec", tmp_path / "job.json", "--output", tmp_path / "out"], check=True,
                   capture_output=True)
    job = server.submit(tiny_model, *QUICK_JOB, calibration=None)
    server.ptq("watch", job)
    server.ptq("download", job, tmp_path / "served")
    assert folder_digests(tmp_path / "served") == folder_digests(tmp_path / "out")


@pytest.fixture(scope="module")
def gptq_folder(tiny_model, tmp_path_factory):
    """A GPTQ job's result, of a worker without a server."""
    folder = tmp_path_factory.mktemp("gptq")
    spec = {"model": str(tiny_model), "calibration": str(CALIBRATION), "algorithm": "gptq", "bits": 4, "group_size": 32,
            "samples": 8, "sequence_length": 64, "format": "gptq", "device": "cpu"}
    run_worker(spec, folder)
    return folder / "out"


def run_worker(spec, folder, code=0):
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps(spec))
    done = subprocess.run([BIN / "ptq-worker", "run", "--spec", folder / "job.json", "--output", folder / "out"],
                          capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_convert_is_a_job(server, gptq_folder, tmp_path):
    formats = "compressed-tensors,gguf"
    done = server.ptq("convert", gptq_folder, "--format", formats, "--output", tmp_path / "served")
    assert re.search(r"read\s+gptq", done.stdout) and re.search(r"written\s+gguf", done.stdout), done.stdout
    first, = json.loads(server.ptq("list", "--json").stdout)
    assert first["state"] == "SUCCEEDED" and first["progress"]["phase"] == "export"

    # The bytes of `ptq-worker convert`, and of the same job without a server.
    subprocess.run([BIN / "ptq-worker", "convert", "--from", gptq_folder, "--format", formats, "--output",
                    tmp_path / "by_hand"], check=True, capture_output=True)
    assert folder_digests(tmp_path / "served") == folder_digests(tmp_path / "by_hand")
    spec = first["job_spec"] | {"model": str(gptq_folder)}
    assert spec == {"task": "convert", "model": str(gptq_folder), "format": ["compressed-tensors", "gguf"]}
    events = run_worker(spec, tmp_path / "run")
    assert events[-1]["type"] == "succeeded" and events[-1]["result_digest"] == first["result_digest"]["hash"]
    assert folder_digests(tmp_path / "run" / "out") == folder_digests(tmp_path / "by_hand")
    again = run_worker(spec, tmp_path / "run")
    assert any("finished result" in event.get("message", "") for event in again)

    report = json.loads((tmp_path / "served" / "report.json").read_bytes())
    assert {file["path"]: file["sha256"] for file in report["outputs"]} == folder_digests(tmp_path / "served")
    assert report["conversion"]["source"]["format"] == "gptq"
    assert [result["format"] for result in report["conversion"]["results"]] == ["compressed-tensors", "gguf"]
    sizes = [sum(p.stat().st_size for p in (tmp_path / "served" / name).iterdir()
                 if p.suffix in (".safetensors", ".gguf")) for name in ("compressed-tensors", "gguf")]
    assert [result["bytes"] for result in report["conversion"]["results"]] == sizes
    assert [entry["format"] for entry in report["loaders"]] == ["compressed-tensors", "gguf"]
    verdicts = {loader["loader"]: loader["verdict"] for loader in report["loaders"][1]["loaders"]}
    assert verdicts["llama.cpp"].startswith("loads")
    modules = [module for block in report["blocks"] for module in block["modules"]]
    assert len(modules) == 4 * 7 and modules[0] == {
        "name": "model.layers.0.self_attn.q_proj", "scheme": "", "bits": 4, "group_size": 32, "symmetric": True}
    assert "evaluation" not in report and "output_mse" not in json.dumps(report)
    assert report["size"]["bits_per_weight"] == pytest.approx(4.5)
    page = (tmp_path / "served" / "report.html").read_text()
    assert "converted from gptq to compressed-tensors, gguf" in page and "Accuracy" not in page
    assert "gptq" in server.ptq("report", first["name"]).stdout

    # Reused, unless the formats are others.
    server.ptq("convert", gptq_folder, "--format", "gguf,compressed-tensors", "--output", tmp_path / "again")
    jobs = json.loads(server.ptq("list", "--json").stdout)
    assert sorted(job.get("reused", False) for job in jobs) == [False, True]
    assert folder_digests(tmp_path / "again") == folder_digests(tmp_path / "by_hand")


def test_a_jobs_result_on_the_server_is_converted_without_sending_it_again(server, tiny_model, tmp_path):
    from ptq.v1 import model_service_pb2 as ms, resources_pb2 as rs
    from ptq.v1 import model_service_pb2_grpc, quantization_service_pb2_grpc
    job = server.submit(tiny_model, *QUICK_JOB, calibration=None)
    server.ptq("watch", job)
    jobs = quantization_service_pb2_grpc.QuantizationServiceStub(server.channel())
    files = jobs.ListArtifacts(rs.ListRequest(parent=job, page_size=1000)).files
    request = ms.CreateModelRequest(parent="tenants/default")
    for file in files:
        if not file.path.startswith("report."):
            request.source.manifest.files.append(file)
    model = model_service_pb2_grpc.ModelServiceStub(server.channel()).CreateModel(request)
    server.ptq("convert", model.name, "--format", "gptq", "--output", tmp_path / "served")
    server.ptq("download", job, tmp_path / "affine")
    subprocess.run([BIN / "ptq-worker", "convert", "--from", tmp_path / "affine", "--format", "gptq", "--output",
                    tmp_path / "by_hand"], check=True, capture_output=True)
    assert folder_digests(tmp_path / "served") == folder_digests(tmp_path / "by_hand")


def test_a_stopped_conversion_begins_again(gptq_folder, tmp_path):
    spec = {"task": "convert", "model": str(gptq_folder), "format": "affine,gguf"}
    (tmp_path / "job.json").write_text(json.dumps(spec))
    command = [BIN / "ptq-worker", "run", "--spec", tmp_path / "job.json", "--output", tmp_path / "out"]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in worker.stdout:
        if json.loads(line).get("phase") == "export":
            worker.send_signal(signal.SIGKILL)
            break
    worker.stdout.close()
    worker.wait()
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run([BIN / "ptq-worker", "convert", "--from", gptq_folder, "--format", "affine,gguf", "--output",
                    tmp_path / "by_hand"], check=True, capture_output=True)
    assert folder_digests(tmp_path / "out") == folder_digests(tmp_path / "by_hand")


def test_the_recipes_flags_reach_the_workers_spec(shared_server, tiny_model):
    submit = ["submit", tiny_model, "--calibration", CALIBRATION, "--group-size", 32, "--validate-only", "--json"]
    spec = json.loads(shared_server.ptq(*submit, "--recipe", "best", "--fisher-tokens", 512,
                                        "--tuning-precision", "bf16", "--low-memory", "on").stdout)
    assert (spec["recipe"], spec["iterations"], spec["fisher_tokens"]) == ("best", 100, 512)
    assert (spec["tuning_precision"], spec["low_memory"]) == ("bf16", "on")
    spec = json.loads(shared_server.ptq(*submit).stdout)
    assert (spec["recipe"], spec["iterations"], spec["fisher_tokens"]) == ("default", 60, -1)
    assert (spec["tuning_precision"], spec["low_memory"]) == ("auto", "auto")


def test_server_path_below_a_root_gives_the_same_bytes_as_an_upload(tiny_model, tmp_path):
    with Server(tmp_path / "data", "--model-root", tiny_model.parent) as server:
        by_path = server.submit(tiny_model, *QUICK_JOB, "--server-path", calibration=None)
        server.ptq("watch", by_path)
        uploaded = server.submit(tiny_model, *QUICK_JOB, "--no-reuse", calibration=None)
        server.ptq("watch", uploaded)
        assert server.status(by_path)["result_digest"] == server.status(uploaded)["result_digest"]
        outside = shutil.copytree(tiny_model, tmp_path / "outside")
        assert str(tiny_model.parent) in server.ptq("submit", outside, *QUICK_JOB, "--server-path", code=2).stderr


def test_inspection_commands(shared_server, tiny_model, tmp_path):
    job = shared_server.submit(tiny_model, *QUICK_JOB, "--label", "team=search", calibration=None)
    shared_server.ptq("watch", job)
    short = job.rsplit("/", 1)[1]
    assert re.fullmatch(r"tenants/default/quantizationJobs/[\w-]+", job)
    assert shared_server.status(short)["labels"] == {"team": "search"}
    assert short in shared_server.ptq("list").stdout
    shared_server.ptq("logs", short)
    report = shared_server.ptq("report", short, "--json", "--html", tmp_path / "r.html")
    shared_server.ptq("download", short, tmp_path / "out")
    assert report.stdout.encode() == (tmp_path / "out" / "report.json").read_bytes()
    assert (tmp_path / "r.html").read_bytes() == (tmp_path / "out" / "report.html").read_bytes()
    assert "llama" in shared_server.ptq("capabilities").stdout
    assert "paper, fast, default, best" in shared_server.ptq("capabilities").stdout
    assert json.loads(shared_server.ptq("capabilities", "--json").stdout)["bits"] == [2, 3, 4, 5, 6, 7, 8]
    events = [json.loads(line) for line in shared_server.ptq("watch", short, "--json").stdout.splitlines()]
    assert events
    shared_server.ptq("delete", short)
    shared_server.ptq("status", short, code=2)


def test_download_continues_a_partial_one_and_refuses_strangers(server, tiny_model, tmp_path):
    job = server.submit(tiny_model, *QUICK_JOB, calibration=None)
    server.ptq("watch", job)
    whole = tmp_path / "whole"
    server.ptq("download", job, whole)
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "mine.txt").write_text("keep")
    assert "occupied" in server.ptq("download", job, occupied, code=2).stderr
    assert (occupied / "mine.txt").read_text() == "keep"


def test_ctrl_c_detaches_and_a_second_one_cancels(server, tiny_model):
    job = server.submit(tiny_model, *SLOW_JOB)
    watcher = subprocess.Popen([BIN / "ptq", "--server", server.address, "watch", job], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    server.wait_for_blocks(job, 1)
    watcher.send_signal(signal.SIGINT)
    _, stderr = watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    assert f"watch {job.rsplit('/', 1)[1]}" in stderr or f"watch {job}" in stderr
    assert server.status(job)["state"] == "RUNNING"
    server.ptq("cancel", job)


def test_exit_statuses_without_a_server(tmp_path, tiny_model):
    ptq = [BIN / "ptq", "--server", "127.0.0.1:1"]
    assert subprocess.run([*ptq, "list"], capture_output=True, timeout=60).returncode == 3
    assert subprocess.run([*ptq, "nonsense"], capture_output=True).returncode == 2
    assert subprocess.run([*ptq, "submit", tiny_model, "--bits", "x"], capture_output=True).returncode == 2
    assert subprocess.run([*ptq, "--help"], capture_output=True).returncode == 0


def test_a_second_server_on_the_same_folder_is_refused(server):
    second = subprocess.run([BIN / "ptqd", "--data-dir", server.data_dir, "--listen", "127.0.0.1:0"], capture_output=True,
                            text=True, timeout=20)
    assert second.returncode != 0
    assert str(server.data_dir) in second.stderr
    server.ptq("list")


def test_a_public_address_is_refused(tmp_path):
    refused = subprocess.run([BIN / "ptqd", "--data-dir", tmp_path / "d", "--listen", "0.0.0.0:0"], capture_output=True,
                             text=True, timeout=20)
    assert refused.returncode == 2 and "TLS" in refused.stderr


def test_the_idle_server_stays_small(server):
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    resident_kb = int(re.search(r"VmRSS:\s+(\d+)", status).group(1))
    assert resident_kb <= 60 * 1024, f"{resident_kb} kB"


def test_the_python_pipeline_example(server, tmp_path):
    done = subprocess.run([sys.executable, SOURCE / "examples" / "pipeline.py", EXAMPLES / "wikilm-llama-6m", CALIBRATION,
                           tmp_path / "out", server.address], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert len((SOURCE / "examples" / "pipeline.py").read_text().splitlines()) < 80
