"""ptq-worker by hand, without a server: exit statuses, events, resume to the same bytes, bad input."""
import hashlib
import json
import math
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest

from harness import BIN, CALIBRATION, EXAMPLES, folder_digests, tiny_config, tiny_tensors, write_tiny_model

# Seconds of work in four blocks, so that a signal finds it in the middle.
SLOW = {"algorithm": "auto-round", "iterations": 60, "samples": 16, "sequence_length": 128, "group_size": 32}
# The learned-scale recipe at its shortest, a Fisher pass before it.
TUNED = {"recipe": "fast", "samples": 16, "sequence_length": 128, "group_size": 32}
EVALUATED = {"evaluation": str(EXAMPLES / "evaluation.txt"), "evaluation_window": 128, "evaluation_samples": 256}
CALIBRATED = {"samples": 16, "sequence_length": 128, "group_size": 32}


class Worker:
    """One run of ptq-worker."""

    def __init__(self, folder, spec, *flags, **popen):
        self.output = pathlib.Path(folder)
        path = self.output.parent / (self.output.name + ".job.json")
        path.write_text(spec if isinstance(spec, str) else json.dumps(spec))
        command = [BIN / "ptq-worker", "run", "--spec", path, "--output", self.output, *map(str, flags)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)
        self.events = []

    def read_until(self, condition):
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if condition(self.events[-1]):
                return self.events[-1]
        raise AssertionError(f"the worker ended first: {self.events[-1:]} {self.process.stderr.read()}")

    def finish(self, code, timeout=300):
        out, self.log = self.process.communicate(timeout=timeout)
        self.events += [json.loads(line) for line in out.splitlines()]
        assert self.process.returncode == code, (self.process.returncode, self.events[-1:], self.log)
        return self

    def of_type(self, kind):
        return [e for e in self.events if e["type"] == kind]

    @property
    def report(self):
        return json.loads((self.output / "report.json").read_text())


def run(folder, spec, code=0, **popen):
    return Worker(folder, spec, **popen).finish(code)


def spec_of(model, calibration=CALIBRATION, **changes):
    spec = {"model": str(model), **changes}
    if calibration:
        spec["calibration"] = str(calibration)
    return spec


@pytest.fixture(scope="session")
def undisturbed(tiny_model, tmp_path_factory):
    """Digests of the slow job's result, run once without interruption."""
    worker = run(tmp_path_factory.mktemp("undisturbed") / "out", spec_of(tiny_model, **SLOW))
    return folder_digests(worker.output)


@pytest.fixture(scope="session")
def tuned(tiny_model, tmp_path_factory):
    """The job of the fast recipe, run once without interruption."""
    return run(tmp_path_factory.mktemp("tuned") / "out", spec_of(tiny_model, **TUNED))


def test_rtn_without_calibration(tiny_model, tmp_path):
    worker = run(tmp_path / "out", spec_of(tiny_model, None, algorithm="rtn", group_size=32))
    assert [e["sequence"] for e in worker.events] == list(range(1, len(worker.events) + 1))
    assert worker.of_type("started")[0]["blocks_total"] == 4
    assert [e["block"] for e in worker.of_type("block_done")] == [0, 1, 2, 3]
    report = worker.report
    assert worker.events[-1]["type"] == "succeeded"
    assert worker.events[-1]["result_digest"] == report["result_digest"]
    assert report["evaluation"] is report["tuning"] is report["calibration"] is None
    assert report["size"]["bits_per_weight"] == 4 + 16 / 32
    loaders, = report["loaders"]
    assert loaders["format"] == "affine" and loaders["method"] == "torchao" and loaders["quantized_layers"] == 28
    verdicts = {entry["loader"]: entry["verdict"] for entry in loaders["loaders"]}
    assert verdicts["transformers"].startswith("loads"), loaders
    assert verdicts["vllm"] == verdicts["sglang"] == verdicts["llama.cpp"] == "does_not_load"
    assert len(report["blocks"]) == 4 and len(report["blocks"][0]["modules"]) == 7
    for module in report["blocks"][0]["modules"]:
        assert module["output_mse"] is module["relative_error"] is module["fallback_reason"] is None
    names = sorted(p.name for p in worker.output.iterdir())
    assert names == sorted(["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                            "model.safetensors.index.json", "report.html", "report.json",
                            *(f"model-{i:05d}-of-00006.safetensors" for i in range(1, 7))])


def test_the_result_digest_is_reproducible_with_sha256sum(tiny_model, tmp_path):
    worker = run(tmp_path / "out", spec_of(tiny_model, None, algorithm="rtn", group_size=32))
    line = subprocess.run("rm report.*; LC_ALL=C sha256sum * | sha256sum", shell=True, cwd=worker.output, text=True,
                          capture_output=True, check=True).stdout
    assert line.split()[0] == worker.events[-1]["result_digest"]


def test_the_page_lists_the_digests_of_all_inputs_and_outputs(tiny_model, tmp_path):
    worker = run(tmp_path / "out", spec_of(tiny_model, None, algorithm="rtn", group_size=32))
    page = (worker.output / "report.html").read_text()
    report = json.loads((worker.output / "report.json").read_bytes())
    assert report["result_digest"] == worker.events[-1]["result_digest"]
    assert {file["path"]: file["sha256"] for file in report["outputs"]} == folder_digests(worker.output)
    for file in report["inputs"]["model"] + report["outputs"]:
        assert file["path"] in page and file["sha256"] in page


@pytest.mark.parametrize("algorithm", ["rtn", "opt-rtn", "gptq", "auto-round"])
def test_every_algorithm_reports_errors_evaluates_and_repeats_its_bytes(tiny_model, tmp_path, algorithm):
    text = tmp_path / "evaluation.txt"
    text.write_text((EXAMPLES / "evaluation.txt").read_text()[:40000])
    quick = {"iterations": 5} if algorithm == "auto-round" else {}
    spec = spec_of(tiny_model, algorithm=algorithm, **quick, **CALIBRATED, evaluation=str(text), evaluation_samples=8)
    first = run(tmp_path / "first", spec)
    second = run(tmp_path / "second", spec)
    assert folder_digests(first.output) == folder_digests(second.output)
    report = first.report
    for block in report["blocks"]:
        has_loss = algorithm == "auto-round"
        assert (block["loss_first"] is not None) == has_loss == bool(block["loss_curve"])
        for module in block["modules"]:
            assert module["output_mse"] > 0 and module["rtn_output_mse"] > 0
            assert 0 < module["relative_error"] < 1
    quantized = report["evaluation"]["quantized"]
    assert report["evaluation"]["windows"] == 8
    assert 0 <= quantized["median_kld"] <= quantized["p99_kld"] <= quantized["p999_kld"] <= quantized["max_kld"]
    assert sum(quantized["kld_histogram"]["counts"]) == 8 * 127
    assert quantized["perplexity"] > 1 and report["evaluation"]["baseline"]["perplexity"] > 1
    assert report["spec"]["algorithm"] == algorithm and report["spec"]["seed"] == 42
    assert (report["tuning"] is not None) == (algorithm == "auto-round")
    assert report["calibration"]["tokens"] == report["calibration"]["error_tokens"] == 16 * 128
    assert {e["phase"] for e in first.of_type("phase")} >= {"load", "observe", "quantize", "export", "evaluate"}


def test_the_baseline_cache_changes_no_figure(tiny_model, tmp_path):
    spec = spec_of(tiny_model, None, algorithm="rtn", group_size=32, evaluation=str(EXAMPLES / "evaluation.txt"),
                   evaluation_window=64, evaluation_samples=8)
    reports = [Worker(tmp_path / name, spec, "--cache-dir", tmp_path / "cache").finish(0).report["evaluation"]
               for name in ("a", "b")]
    assert [r.pop("baseline_from_cache") for r in reports] == [False, True]
    assert reports[0] == reports[1]
    tuned = spec | CALIBRATED | {"algorithm": "auto-round", "calibration": str(CALIBRATION), "iterations": 1}
    report = Worker(tmp_path / "tuned", tuned, "--cache-dir", tmp_path / "cache").finish(0).report["evaluation"]
    assert report["baseline_from_cache"] and report["baseline"] == reports[0]["baseline"]


def test_resume_after_sigkill_gives_the_same_bytes(tiny_model, tmp_path, undisturbed):
    dice = random.Random(7)
    output = tmp_path / "out"
    resumed = []
    for _ in range(3):
        worker = Worker(output, spec_of(tiny_model, **SLOW))
        worker.read_until(lambda e: e["type"] == "block_done")
        time.sleep(dice.random() * 0.5)
        worker.process.kill()
        worker.process.wait()
        resumed += [e["blocks_resumed"] for e in worker.of_type("started")]
        if (output / "report.json").exists():
            break
    last = run(output, spec_of(tiny_model, **SLOW))
    resumed.append(last.of_type("started")[0]["blocks_resumed"])
    assert resumed[0] == 0 and resumed[1] >= 1 and resumed == sorted(resumed)
    assert folder_digests(output) == undisturbed


def test_sigterm_stops_within_five_seconds_and_resumes_to_the_same_bytes(tiny_model, tmp_path, undisturbed):
    output = tmp_path / "out"
    worker = Worker(output, spec_of(tiny_model, **SLOW))
    worker.read_until(lambda e: e["type"] == "block_done" and e["block"] == 1)
    start = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    worker.finish(143)
    assert time.monotonic() - start < 5
    assert worker.events[-1]["type"] == "cancelled"
    assert not (output / "report.json").exists()
    worker = run(output, spec_of(tiny_model, **SLOW))
    assert worker.of_type("started")[0]["blocks_resumed"] >= 2
    assert folder_digests(output) == undisturbed


@pytest.mark.parametrize("moment", ["load", "observe", "evaluate"])
def test_sigterm_in_any_phase(tiny_model, tmp_path, moment):
    spec = spec_of(tiny_model, algorithm="gptq", samples=64, sequence_length=512, group_size=32,
                   evaluation=str(EXAMPLES / "evaluation.txt"))
    worker = Worker(tmp_path / "out", spec)
    worker.read_until(lambda e: e["type"] == "phase" and e["phase"] == moment)
    start = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    worker.finish(143)
    assert time.monotonic() - start < 5


def kill_after_first_block(output, spec):
    worker = Worker(output, spec)
    worker.read_until(lambda e: e["type"] == "block_done")
    worker.process.kill()
    worker.process.wait()


def test_a_recipe_with_a_fisher_pass_resumes_to_the_same_bytes(tiny_model, tmp_path, tuned):
    output = tmp_path / "out"
    kill_after_first_block(output, spec_of(tiny_model, **TUNED))
    assert len(list((output / ".ptq-worker" / "fisher").glob("fisher-*.safetensors"))) == 4
    worker = run(output, spec_of(tiny_model, **TUNED))
    assert worker.of_type("started")[0]["blocks_resumed"] >= 1
    assert "fisher" not in {e["phase"] for e in worker.of_type("phase")}
    assert worker.events[-1]["result_digest"] == tuned.events[-1]["result_digest"]
    for part in ("tuning", "calibration", "warnings"):
        assert worker.report[part] == tuned.report[part]
    assert not (output / ".ptq-worker").exists()


def test_blocks_tuned_in_another_precision_are_done_again(tiny_model, tmp_path, tuned):
    output = tmp_path / "out"
    kill_after_first_block(output, spec_of(tiny_model, **TUNED))
    record = output / ".ptq-worker" / "job.json"
    job = json.loads(record.read_text())
    job["environment"]["tuning_precision"] = "another"
    record.write_text(json.dumps(job))
    worker = run(output, spec_of(tiny_model, **TUNED))
    assert worker.of_type("started")[0]["blocks_resumed"] == 0
    assert worker.events[-1]["result_digest"] == tuned.events[-1]["result_digest"]
    assert any('discarded: tuning_precision is "another" there' in w for w in worker.report["warnings"])


def kill_after_last_block(output, spec):
    """Evaluation follows, which leaves time to be killed in."""
    worker = Worker(output, spec)
    worker.read_until(lambda e: e["type"] == "block_done" and e["block"] == 3)
    worker.process.kill()
    worker.process.wait()
    assert not (output / "report.json").exists()


def test_a_job_killed_after_its_last_block_reports_the_same(tiny_model, tmp_path, tuned):
    spec = spec_of(tiny_model, **TUNED, **EVALUATED)
    kill_after_last_block(tmp_path / "out", spec)
    worker = run(tmp_path / "out", spec)
    assert worker.of_type("started")[0]["blocks_resumed"] == 4
    assert worker.events[-1]["result_digest"] == tuned.events[-1]["result_digest"]
    for part in ("tuning", "calibration", "warnings"):
        assert worker.report[part] == tuned.report[part]
    assert worker.report["timing"]["fisher_seconds"] > 0


def test_a_record_damaged_after_the_last_block_is_redone(tiny_model, tmp_path):
    spec = spec_of(tiny_model, **TUNED, **EVALUATED, format="dequantized")
    whole = run(tmp_path / "whole", spec)
    output = tmp_path / "out"
    kill_after_last_block(output, spec)
    record = sorted((output / ".ptq-worker" / "records").iterdir())[2]
    data = bytearray(record.read_bytes())
    data[9] ^= 0xFF
    record.write_bytes(data)
    worker = run(output, spec)
    assert worker.events[-1]["result_digest"] == whole.events[-1]["result_digest"]
    assert any("was damaged" in w for w in worker.report["warnings"])
    assert worker.report["calibration"] == whole.report["calibration"]


def test_a_damaged_fisher_metric_is_computed_again(tiny_model, tmp_path, tuned):
    output = tmp_path / "out"
    kill_after_first_block(output, spec_of(tiny_model, **TUNED))
    file = output / ".ptq-worker" / "fisher" / "fisher-00003.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    worker = run(output, spec_of(tiny_model, **TUNED))
    assert worker.of_type("started")[0]["blocks_resumed"] >= 1
    assert "fisher" in {e["phase"] for e in worker.of_type("phase")}
    assert worker.events[-1]["result_digest"] == tuned.events[-1]["result_digest"]
    assert any(file.name in w and "computed again" in w for w in worker.report["warnings"])
    assert worker.report["tuning"] == tuned.report["tuning"]


def test_sigterm_during_the_fisher_pass(tiny_model, tmp_path):
    spec = spec_of(tiny_model, recipe="fast", iterations=1, samples=32, sequence_length=256, group_size=32)
    worker = Worker(tmp_path / "out", spec)
    worker.read_until(lambda e: e["type"] == "phase" and e["phase"] == "fisher")
    start = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    worker.finish(143)
    assert time.monotonic() - start < 5
    assert worker.events[-1]["type"] == "cancelled"
    assert {e["phase"] for e in worker.of_type("phase")} == {"load", "fisher"}
    assert not (tmp_path / "out" / ".ptq-worker" / "fisher" / "fisher.json").exists()
    again = run(tmp_path / "out", spec)
    assert again.of_type("started")[0]["blocks_resumed"] == 0
    fractions = [e["phase_fraction"] for e in again.of_type("phase") if e["phase"] == "fisher"]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert again.report["tuning"]["fisher_tokens"] == 32 * 256


def test_the_report_describes_the_tuning_and_the_calibration(tuned):
    report = tuned.report
    tuning = report["tuning"]
    assert tuning["recipe"] == "fast" and tuning["iterations"] == 20 and tuning["batch_size"] == 8
    compute_dtype = report["environment"]["compute_dtype"]
    assert report["spec"]["tuning_precision"] == "auto"
    assert tuning["precision"] == report["environment"]["tuning_precision"]
    assert tuning["precision"] in ("bf16", "fp8") if compute_dtype == "bfloat16" else tuning["precision"] == compute_dtype
    assert sum(tuning["paths"].values()) == len(report["blocks"])
    assert all(block["tuning_path"] in tuning["paths"] for block in report["blocks"])
    assert tuning["optimizer"] == "Adam" and tuning["schedule"] == "cosine" and tuning["kept"] == "last step"
    assert tuning["loss"] == "Fisher metric" and tuning["fisher_tokens"] == 16 * 128
    assert 0 < tuning["fisher_weight"] < 1 and 0 < tuning["scale_learning_rate"] < tuning["learning_rate"]
    calibration = report["calibration"]
    assert (calibration["samples"], calibration["tokens"], calibration["held_out_samples"]) == (16, 16 * 128, 2)
    assert [e["block"] for e in calibration["errors"]] == [0, 1, 2]
    assert all(0 < e["calibration"] < 1 and 0 < e["held_out"] < 1 for e in calibration["errors"])
    ratios = [e["held_out"] / e["calibration"] for e in calibration["errors"]]
    assert calibration["held_out_ratio"] == pytest.approx(math.prod(ratios) ** (1 / 3))
    timing = report["timing"]
    assert timing["fisher_seconds"] > 0 and 0 < timing["search_seconds"] < timing["quantize_seconds"]
    assert 0 < report["memory"]["fisher_host_peak_bytes"] <= report["memory"]["host_peak_bytes"]
    memory = report["memory"]
    assert memory["activations"] == "device" and memory["micro_batches"]["tuning"] == 8
    assert all(block["micro_batches"] == memory["micro_batches"] for block in report["blocks"])
    assert "held-out text" in (tuned.output / "report.html").read_text()


def test_without_fisher_tokens_the_loss_is_the_squared_error(tiny_model, tmp_path):
    worker = run(tmp_path / "out", spec_of(tiny_model, **TUNED, fisher_tokens=0, iterations=2))
    tuning = worker.report["tuning"]
    assert tuning["loss"] == "squared error" and "fisher_tokens" not in tuning and "fisher_weight" not in tuning
    assert "fisher" not in {e["phase"] for e in worker.of_type("phase")}
    assert worker.report["timing"]["fisher_seconds"] == worker.report["memory"]["fisher_host_peak_bytes"] == 0
    assert worker.report["calibration"]["held_out_samples"] == 2


def test_a_metric_from_few_tokens_counts_less_and_says_so(tiny_model, tmp_path, tuned):
    report = run(tmp_path / "out", spec_of(tiny_model, **TUNED, fisher_tokens=100, iterations=2)).report
    assert report["tuning"]["fisher_tokens"] == 128 and report["tuning"]["fisher_weight"] == 0.5
    assert any("128 tokens, fewer than 4" in w for w in report["warnings"])
    assert tuned.report["tuning"]["fisher_weight"] == 0.9
    assert not any("fewer than 4" in w for w in tuned.report["warnings"])


def test_the_papers_recipe_is_reported_too(tiny_model, tmp_path):
    report = run(tmp_path / "out", spec_of(tiny_model, **{**TUNED, "recipe": "paper"}, iterations=4)).report
    tuning = report["tuning"]
    assert tuning["recipe"] == "paper" and tuning["iterations"] == 4 and tuning["learning_rate"] == 1 / 4
    assert tuning["optimizer"] == "signed gradient descent" and tuning["schedule"] == "linear"
    assert tuning["loss"] == "squared error" and tuning["kept"] == "best step" and "fisher_tokens" not in tuning
    assert report["calibration"] == {"samples": 16, "tokens": 16 * 128, "error_tokens": 16 * 128}
    assert report["timing"]["fisher_seconds"] == report["timing"]["search_seconds"] == 0


def test_a_damaged_shard_is_redone(tiny_model, tmp_path, undisturbed):
    output = tmp_path / "out"
    worker = Worker(output, spec_of(tiny_model, **SLOW))
    worker.read_until(lambda e: e["type"] == "block_done" and e["block"] == 1)
    worker.process.kill()
    worker.process.wait()
    shard = output / "model-00003-of-00006.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    worker = run(output, spec_of(tiny_model, **SLOW))
    assert worker.of_type("started")[0]["blocks_resumed"] == 1
    assert folder_digests(output) == undisturbed
    assert any("model-00003-of-00006" in w for w in worker.report["warnings"])


def test_dequantized_output_resumes_too(tiny_model, tmp_path):
    spec = spec_of(tiny_model, algorithm="gptq", format="dequantized", **CALIBRATED)
    whole = run(tmp_path / "whole", spec)
    worker = Worker(tmp_path / "out", spec)
    worker.read_until(lambda e: e["type"] == "block_done")
    worker.process.kill()
    worker.process.wait()
    run(tmp_path / "out", spec)
    assert folder_digests(tmp_path / "out") == folder_digests(whole.output)


FORMATS = ["affine", "compressed-tensors", "gptq", "awq", "auto-round", "dequantized"]


def folder_tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith("report.")}


def test_several_formats_are_those_of_single_jobs(tiny_model, tmp_path):
    spec = dict(algorithm="rtn", group_size=32)
    many = run(tmp_path / "many", spec_of(tiny_model, None, **spec, format=",".join(reversed(FORMATS))))
    assert many.report["spec"]["format"] == FORMATS
    assert sorted(p.name for p in many.output.iterdir()) == sorted([*FORMATS, "report.html", "report.json"])
    outputs = {file["path"]: file["sha256"] for file in many.report["outputs"]}
    assert outputs == {path: hashlib.sha256(data).hexdigest() for path, data in folder_tree(many.output).items()}
    fractions = [e["phase_fraction"] for e in many.of_type("phase") if e["phase"] == "export"]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    for name in FORMATS:
        one = run(tmp_path / name, spec_of(tiny_model, None, **spec, format=name))
        assert folder_tree(one.output) == folder_tree(many.output / name), name


def test_a_run_killed_between_formats_ends_with_the_same_files(tiny_model, tmp_path):
    spec = spec_of(tiny_model, None, algorithm="rtn", group_size=32, format=FORMATS)
    whole = run(tmp_path / "whole", spec)
    output = tmp_path / "out"
    worker = Worker(output, spec)
    while not (output / "gptq" / "config.json").exists():  # what a format writes last
        assert worker.process.poll() is None
        time.sleep(0.001)
    worker.process.kill()
    worker.process.wait()
    assert not (output / "report.json").exists()
    (output / "awq" / "stray.safetensors").parent.mkdir(exist_ok=True)
    (output / "awq" / "stray.safetensors").write_bytes(b"half")
    again = run(output, spec)
    assert again.of_type("started")[0]["blocks_resumed"] == 4
    assert folder_tree(output) == folder_tree(whole.output)
    assert again.events[-1]["result_digest"] == whole.events[-1]["result_digest"]
    # The finished folder is verified file by file; one that was touched makes the job again.
    (output / "gptq" / "config.json").write_text("{}")
    third = run(output, spec)
    assert len(third.of_type("block_done")) == 4
    assert folder_tree(output) == folder_tree(whole.output)


def test_a_format_that_cannot_hold_a_layer_is_refused_at_once(tiny_model, tmp_path):
    spec = spec_of(tiny_model, None, algorithm="rtn", group_size=32, rule=[".*layers.1.mlp.down_proj:bits=5"])
    worker = run(tmp_path / "out", {**spec, "format": "affine,gptq"}, code=2)
    failed = worker.events[-1]
    assert failed["code"] == "FAILED_PRECONDITION"
    for part in ("format: gptq", "model.layers.1.mlp.down_proj", "5 bits", "compressed-tensors"):
        assert part in failed["message"]
    assert not worker.of_type("block_done")


def test_a_finished_folder_is_verified_and_done_at_once(tiny_model, tmp_path):
    spec = spec_of(tiny_model, None, algorithm="rtn", group_size=32)
    first = run(tmp_path / "out", spec)
    again = run(tmp_path / "out", spec)
    assert again.events[-1]["result_digest"] == first.events[-1]["result_digest"]
    assert not again.of_type("block_done")
    # A result that was touched since is made again.
    (tmp_path / "out" / "config.json").write_text("{}")
    third = run(tmp_path / "out", spec)
    assert third.events[-1]["result_digest"] == first.events[-1]["result_digest"]
    assert len(third.of_type("block_done")) == 4


def test_a_folder_of_another_job_is_refused(tiny_model, tmp_path):
    run(tmp_path / "out", spec_of(tiny_model, None, algorithm="rtn", group_size=32))
    before = folder_digests(tmp_path / "out")
    worker = run(tmp_path / "out", spec_of(tiny_model, None, algorithm="rtn", group_size=64), code=2)
    assert "group_size is 32 there and 64 here" in worker.events[-1]["message"]
    assert folder_digests(tmp_path / "out") == before


def test_a_stray_temporary_file_is_swept_away(tiny_model, tmp_path, undisturbed):
    output = tmp_path / "out"
    worker = Worker(output, spec_of(tiny_model, **SLOW))
    worker.read_until(lambda e: e["type"] == "block_done")
    worker.process.kill()
    worker.process.wait()
    (output / "model-00005-of-00006.safetensors.tmp.4242.0").write_text("half a shard")
    run(output, spec_of(tiny_model, **SLOW))
    assert folder_digests(output) == undisturbed


@pytest.fixture
def slowly_hashed(tiny_model, tmp_path):
    """The tiny model beside a file that takes far longer to hash than everything else: (folder, the file)."""
    folder = tmp_path / "slowly-hashed"
    shutil.copytree(tiny_model, folder)
    with open(folder / "notes.json", "wb") as notes:
        notes.truncate(64 << 30)
    return folder, folder / "notes.json"


def run_until_all_blocks_wait(output, spec):
    """A worker whose blocks are on the disk, but for the inputs' digests, with what that looks like."""
    worker = Worker(output, spec)
    shards = [output / f"model-{i:05d}-of-00006.safetensors" for i in range(1, 7)]
    deadline = time.monotonic() + 60
    while not all(shard.exists() for shard in shards):
        assert worker.process.poll() is None and time.monotonic() < deadline, list(output.iterdir())
        time.sleep(0.05)
    state = output / ".ptq-worker"
    assert json.loads((state / "job.json").read_text())["inputs"] is None
    assert not list(state.glob("block-*.json")) and not (output / "config.json").exists()
    return worker


@pytest.mark.parametrize("change, code", [(lambda p: os.truncate(p, 5), "DATA_LOSS"), (os.utime, "DATA_LOSS"),
                                          (os.unlink, "NOT_FOUND")])
def test_an_input_that_changes_while_it_is_hashed_fails_the_job(slowly_hashed, tmp_path, change, code):
    model, notes = slowly_hashed
    if code == "NOT_FOUND" or change is os.utime:
        os.truncate(notes, 6 << 30)  # is hashed to its end
    worker = run_until_all_blocks_wait(tmp_path / "out", spec_of(model, None, algorithm="rtn", group_size=32))
    change(notes)
    worker.finish(2 if code == "NOT_FOUND" else 1)
    assert worker.events[-1]["code"] == code and str(notes) in worker.events[-1]["message"]
    assert not worker.of_type("block_done")
    assert not list((tmp_path / "out").iterdir())


def test_sigterm_while_blocks_wait_for_the_inputs_leaves_nothing(slowly_hashed, tmp_path):
    worker = run_until_all_blocks_wait(tmp_path / "out", spec_of(slowly_hashed[0], None, algorithm="rtn", group_size=32))
    start = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    worker.finish(143)
    assert time.monotonic() - start < 5
    assert worker.events[-1]["type"] == "cancelled" and not worker.of_type("block_done")
    assert not list((tmp_path / "out").iterdir())


def test_a_run_killed_before_its_inputs_were_known_is_worth_nothing(slowly_hashed, tiny_model, tmp_path):
    model, notes = slowly_hashed
    spec = spec_of(model, None, algorithm="rtn", group_size=32)
    worker = run_until_all_blocks_wait(tmp_path / "out", spec)
    worker.process.kill()
    worker.process.wait()
    notes.unlink()  # another job by content
    again = run(tmp_path / "out", spec)
    assert again.of_type("started")[0]["blocks_resumed"] == 0
    assert [e["block"] for e in again.of_type("block_done")] == [0, 1, 2, 3]
    whole = run(tmp_path / "whole", spec_of(tiny_model, None, algorithm="rtn", group_size=32))
    assert folder_digests(tmp_path / "out") == folder_digests(whole.output)


def test_the_metric_is_complete_only_when_the_inputs_are_known(slowly_hashed, tmp_path):
    worker = Worker(tmp_path / "out", spec_of(slowly_hashed[0], **TUNED))
    fisher = tmp_path / "out" / ".ptq-worker" / "fisher"
    deadline = time.monotonic() + 60
    while len(list(fisher.glob("fisher-*.safetensors"))) < 4:
        assert worker.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    # From then on the wait is what the job tells of.
    worker.read_until(lambda e: e["type"] == "phase" and e["phase"] == "fisher")
    worker.read_until(lambda e: e["type"] == "phase" and e["phase"] == "load")
    assert not (fisher / "fisher.json").exists()
    worker.process.send_signal(signal.SIGTERM)
    worker.finish(143)
    assert not list((tmp_path / "out").iterdir())


def test_with_finished_blocks_the_inputs_are_known_first(slowly_hashed, tmp_path):
    model, notes = slowly_hashed
    notes.unlink()
    kill_after_first_block(tmp_path / "out", spec_of(model, **SLOW))
    before = {p.name for p in (tmp_path / "out").rglob("*")}
    with open(notes, "wb") as file:
        file.truncate(64 << 30)
    worker = Worker(tmp_path / "out", spec_of(model, **SLOW))
    worker.read_until(lambda e: e["type"] == "phase" and e["phase"] == "load" and e["phase_fraction"] > 0)
    worker.process.send_signal(signal.SIGTERM)
    worker.finish(143)
    assert not worker.of_type("started")
    assert {p.name for p in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("change, expected", [
    ({"bits": 9}, "bits"), ({"bits": "four"}, "bits"), ({"speed": 11}, "speed"), ({"group_size": 48}, "48"),
    ({"rule": ["model.nothing:skip"]}, "model.nothing"), ({"rule": [".*:skip"]}, "skip every layer"),
    ({"model": "/nowhere"}, "/nowhere"), ({"calibration": "/nowhere.jsonl"}, "/nowhere.jsonl"),
    ({"algorithm": "gptq", "calibration": ""}, "calibration"), ({"seed": -1}, "seed"),
    ({"algorithm": "gptq", "iterations": 5}, "iterations: 5 goes with algorithm auto-round alone"),
    ({"recipe": "paper", "fisher_tokens": 0}, "no Fisher metric"), ({"recipe": "quick"}, "quick"),
    ({"tuning_precision": "fp8", "device": "cpu"}, "tuning_precision: fp8 needs a GPU of compute capability 9.0"),
    ({"algorithm": "rtn", "tuning_precision": "fp8"}, "tuning_precision: fp8 goes with algorithm auto-round alone"),
    ({"rule": [".*k_proj:bits=8"]}, "q_proj, k_proj and v_proj are loaded as one layer"),
    ({"preset": "W4A16_M"}, "preset"), ({"preset": "W2A16"}, "\"W2A16\" is none of W8A16"),
    ({"evaluation": "text.pdf"}, "text.pdf")])
def test_a_bad_spec_exits_2_with_one_sentence(tiny_model, tmp_path, change, expected):
    worker = run(tmp_path / "out", {**spec_of(tiny_model, group_size=32), **change}, code=2)
    assert worker.events[-1]["type"] == "failed"
    assert expected in worker.events[-1]["message"]
    assert "\n" not in worker.events[-1]["message"]
    assert worker.events[-1]["message"] in worker.log
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_spec_that_is_not_json(tmp_path):
    assert run(tmp_path / "out", "{", code=2).events[-1]["code"] == "INVALID_ARGUMENT"


def test_a_missing_spec_and_wrong_flags_exit_2(tmp_path):
    worker = [BIN / "ptq-worker", "run", "--output", tmp_path / "out"]
    assert subprocess.run(worker, capture_output=True).returncode == 2
    assert subprocess.run([*worker, "--spec", tmp_path / "none.json"], capture_output=True).returncode == 2
    assert subprocess.run([BIN / "ptq-worker", "--version"], capture_output=True, text=True).stdout.startswith("ptq-worker 0.")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value):
    tensors = tiny_tensors(tiny_config())
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = value
    model = write_tiny_model(tmp_path / "model", tensors)
    worker = run(tmp_path / "out", spec_of(model, None, algorithm="rtn", group_size=32), code=1)
    assert worker.events[-1]["code"] == "INVALID_ARGUMENT"
    assert "model.layers.2.mlp.up_proj.weight" in worker.events[-1]["message"]
    assert len(worker.of_type("block_done")) == 2


def test_too_few_tokens_say_how_many_there_were(tiny_model, tmp_path):
    calibration = tmp_path / "small.txt"
    calibration.write_text("only a few words")
    worker = run(tmp_path / "out", spec_of(tiny_model, calibration, **CALIBRATED), code=1)
    assert worker.events[-1]["code"] == "INVALID_ARGUMENT"
    assert "6 tokens are too few for 16 samples of 128" in worker.events[-1]["message"]


def test_evaluation_text_shorter_than_a_window_fails_before_the_first_block(tiny_model, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("short")
    spec = spec_of(tiny_model, None, algorithm="rtn", group_size=32, evaluation=str(text))
    worker = run(tmp_path / "out", spec, code=1)
    assert "evaluation" in worker.events[-1]["message"] and not worker.of_type("block_done")


def test_a_full_disk_fails_the_job_and_a_later_run_finishes_it(tiny_model, tmp_path):
    spec = spec_of(tiny_model, None, algorithm="rtn", group_size=32)

    def no_large_files():
        # Blocks fit, the embedding does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    worker = run(tmp_path / "out", spec, code=1, preexec_fn=no_large_files)
    assert worker.events[-1]["code"] == "RESOURCE_EXHAUSTED"
    assert "free disk space" in worker.events[-1]["message"]
    names = {p.name for p in (tmp_path / "out").rglob("*")}
    assert not {n for n in names if ".tmp." in n}
    assert not names & {"config.json", "model.safetensors.index.json", "model-00001-of-00006.safetensors", "report.json"}
    again = run(tmp_path / "out", spec)
    assert again.of_type("started")[0]["blocks_resumed"] == 4


def test_a_block_that_cannot_be_written_ends_the_job(tiny_model, tmp_path):
    spec = spec_of(tiny_model, algorithm="opt-rtn", **CALIBRATED)

    def no_shards():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))

    worker = run(tmp_path / "out", spec, code=1, preexec_fn=no_shards)
    assert worker.events[-1]["code"] == "RESOURCE_EXHAUSTED"
    assert "model-00002-of-00006.safetensors" in worker.events[-1]["message"]
    assert not worker.of_type("block_done")
    again = run(tmp_path / "out", spec)
    assert again.of_type("started")[0]["blocks_resumed"] == 0
    assert [e["block"] for e in again.of_type("block_done")] == [0, 1, 2, 3]
    timing, blocks = again.report["timing"], again.report["blocks"]
    assert timing["export_seconds"] >= sum(b["export_seconds"] for b in blocks) > 0
    assert sum(b["seconds"] for b in blocks) < timing["total_seconds"]


def test_out_of_memory_is_a_status_with_advice(tmp_path):
    # The job wants some gigabytes of hidden states, and the address space is small.
    model = write_tiny_model(tmp_path / "model", hidden_size=2048, head_dim=512, num_hidden_layers=1)
    spec = spec_of(model, algorithm="gptq", samples=512, sequence_length=512, group_size=32)

    def little_memory():
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))

    worker = run(tmp_path / "out", spec, code=1, preexec_fn=little_memory)
    assert worker.events[-1]["code"] == "RESOURCE_EXHAUSTED"
    assert "sequence_length" in worker.events[-1]["message"]


def test_two_workers_do_not_write_one_folder(tiny_model, tmp_path):
    first = Worker(tmp_path / "out", spec_of(tiny_model, **SLOW))
    first.read_until(lambda e: e["type"] == "started")
    second = Worker(tmp_path / "out", spec_of(tiny_model, **SLOW))
    second.read_until(lambda e: e["type"] == "phase")
    time.sleep(1)
    assert second.process.poll() is None  # waits for the first
    second.process.send_signal(signal.SIGTERM)
    second.finish(143)
    first.process.kill()
    first.finish(-9)


def test_a_worker_whose_reader_is_gone_stops(tiny_model, tmp_path):
    worker = Worker(tmp_path / "out", spec_of(tiny_model, **SLOW))
    worker.read_until(lambda e: e["type"] == "block_done")
    worker.process.stdout.close()
    assert worker.process.wait(60) == 143
    worker.process.stderr.close()
