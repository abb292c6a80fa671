#!/usr/bin/env python3
"""The demo of `make demo`: a real server, four real jobs over gRPC, one table of what they cost."""
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
# Both recipes of auto-round shortened alike (from 200 and 60 steps): the demo is meant to fit in four minutes on two
# cores without AMX.
STEPS = 30
# Folder: the table's name for it, and its flags.
JOBS = {
    "rtn": ("rtn", ["--algorithm", "rtn"]),
    "gptq": ("gptq", ["--algorithm", "gptq"]),
    **{f"auto-round-{recipe}": (f"auto-round {recipe}, {STEPS} iterations",
                                ["--algorithm", "auto-round", "--recipe", recipe, "--iterations", str(STEPS)])
       for recipe in ("paper", "default")}}
WIDTH = max(len(label) for label, _ in JOBS.values())


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
            for name, (label, flags) in JOBS.items():
                folder = output / name
                print(f"\n── {label} ──", flush=True)
                command = ptq + ["quantize", str(EXAMPLES / "wikilm-llama-6m"), "--output", str(folder),
                                 *flags, *SCHEME, *DATA]
                begin = time.monotonic()
                subprocess.run(command, check=True)
                rows.append((label, json.loads((folder / "report.json").read_bytes()), time.monotonic() - begin))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    show = output.relative_to(ROOT) if output.is_relative_to(ROOT) else output
    print(f"\n{'method':<{WIDTH}}{'bits/weight':>13}{'perplexity':>12}{'mean KLD':>10}{'top-1':>8}{'seconds':>9}")
    baseline = rows[0][1]["evaluation"]["baseline"]["perplexity"]
    print(f"{'bf16':<{WIDTH}}{16:>13.3f}{baseline:>12.3f}{0:>10.4f}{1:>8.3f}{'':>9}")
    for label, report, seconds in rows:
        result = report["evaluation"]["quantized"]
        print(f"{label:<{WIDTH}}{report['size']['bits_per_weight']:>13.3f}{result['perplexity']:>12.3f}"
              f"{result['mean_kld']:>10.4f}{result['top1_agreement']:>8.3f}{seconds:>9.1f}")
    print(f"""
{time.monotonic() - started:.0f} s in all. Lower perplexity and KLD are better, higher top-1 agreement too.
Left alone, auto-round makes 200 iterations by the paper's recipe and 60 by the default one.
METHOD is one of {", ".join(JOBS)}:
  {show}/METHOD/report.html   open it in a browser: what the quantization cost, block by block
  {show}/METHOD               a checkpoint: AutoModelForCausalLM.from_pretrained("{show}/METHOD", dtype="auto")
                              with transformers and torchao""")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
