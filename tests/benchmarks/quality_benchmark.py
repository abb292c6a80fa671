#!/usr/bin/env python3
"""Quality on the example model: mean KLD on all WikiText-2 windows against the issue's targets.

quality_benchmark.py [--device cpu|cuda] [--seeds 42,43,44] [--only PATTERN] [--worker build/bin/ptq-worker]
Calibration: the first 128 x 512 tokens of examples/calibration.jsonl; evaluation windows of 512. Prints a line a run and
a table; exits 1 if a mean misses its target by more than 2 %.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
# (name, spec, target mean KLD, seeded)
ROWS = [
    ("rtn W4G128", {"algorithm": "rtn", "bits": 4}, None, False),
    ("opt-rtn W4G128", {"algorithm": "opt-rtn", "bits": 4}, 0.0888, False),
    ("opt-rtn W3G128", {"algorithm": "opt-rtn", "bits": 3}, 0.351, False),
    ("opt-rtn W2G128", {"algorithm": "opt-rtn", "bits": 2}, 1.98, False),
    ("gptq W4G128", {"algorithm": "gptq", "bits": 4}, 0.061, False),
    ("gptq W3G128", {"algorithm": "gptq", "bits": 3}, 0.245, False),
    ("gptq W2G128", {"algorithm": "gptq", "bits": 2}, 1.30, False),
    ("auto-round W4G128", {"algorithm": "auto-round", "recipe": "paper", "bits": 4}, 0.0509, True),
    ("auto-round W3G128", {"algorithm": "auto-round", "recipe": "paper", "bits": 3}, 0.1973, True),
    ("auto-round W4G128 asymmetric", {"algorithm": "auto-round", "recipe": "paper", "bits": 4, "asymmetric": True}, 0.0481,
     True),
]


def run(worker, spec, cache):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "job.json").write_text(json.dumps(spec))
        began = time.monotonic()
        done = subprocess.run([worker, "run", "--spec", folder / "job.json", "--output", folder / "out", "--cache-dir", cache],
                              capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{spec}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return json.loads((folder / "out" / "report.json").read_bytes()), time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--only", default="")
    parser.add_argument("--worker", default=str(ROOT / "build" / "bin" / "ptq-worker"))
    args = parser.parse_args()
    base = {"model": str(EXAMPLES / "wikilm-llama-6m"), "calibration": str(EXAMPLES / "calibration.jsonl"),
            "evaluation": str(EXAMPLES / "evaluation.txt"), "samples": 128, "sequence_length": 512, "group_size": 128,
            "evaluation_samples": 0, "device": args.device}
    table, missed = [], False
    with tempfile.TemporaryDirectory() as cache:
        for name, changes, target, seeded in ROWS:
            if not re.search(args.only, name):
                continue
            results = []
            for seed in [int(s) for s in args.seeds.split(",")] if seeded else [42]:
                report, seconds = run(args.worker, base | changes | {"seed": seed}, cache)
                quality = report["evaluation"]["quantized"]
                results.append(quality["mean_kld"])
                print(f"{name}: seed {seed}: perplexity {quality['perplexity']:.3f}, mean KLD {quality['mean_kld']:.5f}, "
                      f"top-1 {quality['top1_agreement']:.4f}, quantize {report['timing']['quantize_seconds']:.1f} s, "
                      f"in all {seconds:.1f} s", flush=True)
            mean = sum(results) / len(results)
            ok = target is None or mean <= 1.02 * target
            missed |= not ok
            table.append((name, mean, max(results) - min(results), target, "" if target is None else "ok" if ok else "MISSED"))
    print(f"\n{'':<30}{'mean KLD':>10}{'spread':>9}{'target':>9}")
    for name, mean, spread, target, verdict in table:
        print(f"{name:<30}{mean:>10.5f}{spread:>9.5f}{target if target else '':>9} {verdict}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
