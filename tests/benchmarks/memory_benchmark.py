#!/usr/bin/env python3
"""Memory of ptq-worker with a random 2.2 GB Llama checkpoint of 24 blocks.

1. The peak of RTN, W4G128, no evaluation.
2. What the Fisher pass (1024 tokens, windows of 512, on the CPU) adds to an Auto-Round job's peak, beyond the outputs of
   the blocks that it keeps: the same job with and without it, until the first block is done, where both are stopped.
Prints a JSON line for each; exits 1 beyond a limit. Usage: memory_benchmark.py [--build build] [--folder DIR]
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from random_checkpoint import SHAPES, write_calibration, write_checkpoint

LIMIT_MIB = 700
FISHER_LIMIT_MIB = 300
FISHER_TOKENS, WINDOW = 1024, 512
CONFIG = SHAPES["tinyllama-24"]


def memory_of(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} of process {pid}")


def rtn_peak(worker, model, scratch):
    spec = scratch / "rtn.json"
    spec.write_text(json.dumps({"model": str(model), "algorithm": "rtn"}))
    subprocess.run([worker, "run", "--spec", spec, "--output", scratch / "rtn"], stdout=subprocess.DEVNULL, check=True)
    report = json.loads((scratch / "rtn" / "report.json").read_text())
    return {"benchmark": "rtn", "checkpoint_bytes": report["size"]["before_bytes"],
            "host_peak_mib": round(report["memory"]["host_peak_bytes"] / 2**20, 1), "limit_mib": LIMIT_MIB,
            "seconds": round(report["timing"]["total_seconds"], 1)}


def peaks_until_first_block(worker, model, scratch, fisher_tokens):
    """VmHWM when the Fisher pass is over (None without it) and when the first block is done, in MiB."""
    samples = FISHER_TOKENS // WINDOW
    write_calibration(scratch / "ids.safetensors", CONFIG["vocab_size"], samples, WINDOW)
    spec = scratch / "fisher.json"
    spec.write_text(json.dumps({"model": str(model), "calibration": str(scratch / "ids.safetensors"), "samples": samples,
                                "sequence_length": WINDOW, "recipe": "fast", "iterations": 4, "device": "cpu",
                                "fisher_tokens": fisher_tokens}))
    process = subprocess.Popen([worker, "run", "--spec", spec, "--output", scratch / f"fisher-{fisher_tokens}"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    in_pass, after_pass = False, None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "failed":
            raise RuntimeError(event["message"])
        if in_pass and event.get("phase") != "fisher" and after_pass is None:
            after_pass = memory_of(process.pid, "VmHWM")
        in_pass = event.get("phase") == "fisher"
        if event["type"] == "block_done":
            peak = memory_of(process.pid, "VmHWM")
            process.terminate()
            break
    process.stdout.close()
    process.wait()
    return after_pass, peak


def fisher_memory(worker, model, scratch):
    _, without = peaks_until_first_block(worker, model, scratch, 0)
    after_pass, peak = peaks_until_first_block(worker, model, scratch, FISHER_TOKENS)
    outputs = (CONFIG["num_hidden_layers"] + 1) * FISHER_TOKENS * CONFIG["hidden_size"] * 4 / 2**20
    return {"benchmark": "fisher", "kept_outputs_mib": round(outputs, 1), "after_pass_mib": round(after_pass, 1),
            "first_block_mib": round(peak, 1), "first_block_without_mib": round(without, 1),
            "extra_mib": round(max(0, peak - without - outputs), 1), "limit_mib": FISHER_LIMIT_MIB}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path, help="keep the model here between runs")
    arguments = parser.parse_args()
    worker = arguments.build / "bin" / "ptq-worker"
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        model = (arguments.folder or scratch) / "random-llama-24"
        if not (model / "model.safetensors.index.json").exists():
            write_checkpoint(model, CONFIG)
        rtn = rtn_peak(worker, model, scratch)
        print(json.dumps(rtn), flush=True)
        fisher = fisher_memory(worker, model, scratch)
        print(json.dumps(fisher), flush=True)
    return 0 if rtn["host_peak_mib"] <= LIMIT_MIB and fisher["extra_mib"] <= FISHER_LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
