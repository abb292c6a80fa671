#!/usr/bin/env python3
"""The demo of `make demo`: a real server, three real jobs over gRPC, one table of what they cost."""
import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SCHEME = ["--bits", "4", "--group-size", "128"]
DATA = ["--calibration", str(EXAMPLES / "calibration.jsonl"), "--samples", "64", "--sequence-length", "512",
        "--evaluation", str(EXAMPLES / "evaluation.txt"), "--evaluation-samples", "64"]
# Fewer steps than the default recipe's 60: the demo is meant to fit in four minutes on two cores without AMX.
JOBS = {"rtn": [], "gptq": [], "auto-round": ["--iterations", "40"]}


def start_server(binaries, data_dir):
    server = subprocess.Popen([binaries / "ptqd", "--data-dir", data_dir, "--listen", "127.0.0.1:0"],
                              stdout=subprocess.PIPE, stderr=open(pathlib.Path(data_dir) / "ptqd.log", "wb"), text=True)
    line = server.stdout.readline()
    if not line.startswith("ptqd listening on "):
        sys.exit("ptqd did not start: see " + str(pathlib.Path(data_dir) / "ptqd.log"))
    return server, line.split()[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build")
    parser.add_argument("--output", default="demo-output")
    args = parser.parse_args()
    binaries = (ROOT / args.build / "bin").resolve()
    output = (ROOT / args.output).resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    started = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory(prefix="ptqd-demo-") as data_dir:
        server, address = start_server(binaries, data_dir)
        ptq = [str(binaries / "ptq"), "--server", address]
        try:
            for method, flags in JOBS.items():
                folder = output / method
                print(f"\n── {method} ──", flush=True)
                command = ptq + ["quantize", str(EXAMPLES / "wikilm-llama-6m"), "--output", str(folder),
                                 "--algorithm", method, *SCHEME, *DATA, *flags]
                begin = time.monotonic()
                subprocess.run(command, check=True)
                rows.append((method, json.loads((folder / "report.json").read_bytes()), time.monotonic() - begin))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    show = output.relative_to(ROOT) if output.is_relative_to(ROOT) else output
    print(f"\n{'method':<12}{'bits/weight':>12}{'perplexity':>12}{'mean KLD':>10}{'top-1':>8}{'seconds':>9}")
    baseline = rows[0][1]["evaluation"]["baseline"]["perplexity"]
    print(f"{'bf16':<12}{16:>12.3f}{baseline:>12.3f}{0:>10.4f}{1:>8.3f}{'':>9}")
    for method, report, seconds in rows:
        result = report["evaluation"]["quantized"]
        print(f"{method:<12}{report['size']['bits_per_weight']:>12.3f}{result['perplexity']:>12.3f}"
              f"{result['mean_kld']:>10.4f}{result['top1_agreement']:>8.3f}{seconds:>9.1f}")
    print(f"""
{time.monotonic() - started:.0f} s in all. Lower perplexity and KLD are better, higher top-1 agreement too.
  {show}/METHOD/report.html   open it in a browser: what the quantization cost, block by block
  {show}/METHOD               a checkpoint: AutoModelForCausalLM.from_pretrained("{show}/auto-round", dtype="auto")
                              with transformers and torchao""")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
