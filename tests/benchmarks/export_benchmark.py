#!/usr/bin/env python3
"""Rate and memory of `ptq-worker convert`: the records of a random 2.2 GB Llama checkpoint to every format.

A plain file copy (`cp`, then fsync) of the original checkpoint runs before each conversion. Rates are in bytes of the
original checkpoint, for all formats alike: what a user waits for is the model. Medians of several rounds, in which the
formats take turns. Prints a JSON line for each; exits 1 where a rate is below half of the copy's, or the peak of
resident memory above 700 MiB.
Usage: export_benchmark.py [--build build] [--folder DIR] [--formats a,b] [--rounds 3]
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from random_checkpoint import SHAPES, write_checkpoint

LIMIT_MIB = 700
LEAST_RATIO = 0.5
# Each with the scheme of its records.
FORMATS = {"affine": {}, "dequantized": {}, "compressed-tensors": {}, "gptq": {}, "awq": {"asymmetric": True},
           "auto-round": {}, "gguf": {"group_size": 32}}


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_seconds(source, target):
    """Of a copy that is on the disk when it ends, like every file of an export."""
    start = time.monotonic()
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in target.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    seconds = time.monotonic() - start
    shutil.rmtree(target)
    return seconds


def run(command):
    """(seconds, peak of resident memory in MiB)."""
    start = time.monotonic()
    # ru_maxrss would be this interpreter's: a child begins with its parent's pages.
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([str(part) for part in command], stdout=said)
        peak = 0
        while process.poll() is None:
            fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines())
            peak = max(peak, int(fields.get("VmHWM", "0").split()[0]))
            time.sleep(0.02)
        seconds = time.monotonic() - start
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(said.read()[-2000:])
    return seconds, peak / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path, help="keep the model and its records here between runs")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    worker = options.build / "bin" / "ptq-worker"
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        kept = options.folder or scratch
        model = kept / "model"
        if not (model / "config.json").exists():
            write_checkpoint(model, SHAPES["tinyllama-24"])
        size = folder_bytes(model)
        sources = {}
        for name in options.formats.split(","):
            scheme = FORMATS[name]
            records = sources[name] = kept / ("records" + "".join(f"-{key}-{value}" for key, value in scheme.items()))
            if not (records / "report.json").exists():
                spec = scratch / "rtn.json"
                spec.write_text(json.dumps({"model": str(model), "algorithm": "rtn", "device": "cpu", **scheme}))
                run([worker, "run", "--spec", spec, "--output", records])
        measured = {name: [] for name in sources}
        for name in list(sources) * options.rounds:
            plain = copy_seconds(model, scratch / "copy")
            out = scratch / "out"
            seconds, peak = run([worker, "convert", "--from", sources[name], "--format", name, "--output", out])
            measured[name].append((seconds, plain, peak, folder_bytes(out)))
            shutil.rmtree(out)
        for name, runs in measured.items():
            seconds, plain, peak, written = (list(column) for column in zip(*runs))
            ratio = statistics.median(plain) / statistics.median(seconds)
            line = {"benchmark": "export", "format": name, "checkpoint_bytes": size,
                    "record_bytes": folder_bytes(sources[name]), "written_bytes": written[0],
                    "seconds": round(statistics.median(seconds), 2), "copy_seconds": round(statistics.median(plain), 2),
                    "all_seconds": [round(value, 2) for value in seconds], "ratio": round(ratio, 2),
                    "least_ratio": LEAST_RATIO, "peak_mib": round(max(peak)), "limit_mib": LIMIT_MIB}
            print(json.dumps(line), flush=True)
            failed = failed or ratio < LEAST_RATIO or max(peak) > LIMIT_MIB
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
