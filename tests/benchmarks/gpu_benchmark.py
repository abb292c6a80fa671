#!/usr/bin/env python3
"""`make bench-gpu`: tuning on one GPU against what the GPU could do at best and against intel/auto-round.

gpu_benchmark.py [--list] [--quick | --only PATTERN,...] [--peer auto|yes|no] [--scratch DIR] [--json FILE]
                 [--tuning-precision bf16|fp8|auto] [--iterations N] [--worker build/bin/ptq-worker]
Every row prints when it is done; a table of all rows comes last. With --json the rows that are not run again are taken from
that file if they are of the same GPU, so that a table can be filled in pieces. Models are random and of a shape: 8b is
Llama-3.1-8B's, 0.5b Qwen2.5-0.5B's as a Llama, 8 sequences of 2048 tokens a step. Rows, each with 4-bit groups of 128:
  copy                        bytes a second that the GPU copies
  floor-SHAPE-bf16, -fp8      the matrix products and the attention of an iteration, one after the other, nothing else
  block-SHAPE-RECIPE          ms an iteration of auto-round over blocks 2 to 4 of four, without the search for scales
  block-SHAPE-gptq            seconds a block of GPTQ over blocks 2 to 4 of four, 512 windows: chains, Hessians, solver
  block-SHAPE-low-memory      block-SHAPE-default with low_memory on, and what it takes of the device, everything counted
  peer-SHAPE-compiled, -eager the same of auto-round, 200 iterations, on the same weights and tokens; the fastest block
  job-RECIPE, job-gptq, job-rtn  whole jobs on all 32 blocks of 8b (16 GB), from the process's start to its end, the
                              checkpoint not in the page cache; rtn beside reading and writing as many bytes
  example-paper               examples/wikilm-llama-6m, 128 x 512 tokens: seconds of tuning, the peer's in eager mode beside it
The tiny rows, of use on a CPU too (--device cpu), run only if --only names them. Exits 1 if a row failed or missed its target.
"""
import argparse
import concurrent.futures
import fnmatch
import importlib.util
import json
import os
import pathlib
import re
import statistics
import sys
import tempfile
import time

from auto_round_benchmark import calibration_windows, time_ours, time_peer
from quality_benchmark import ROOT, recipe, run
from random_checkpoint import SHAPES, write_calibration, write_checkpoint

SHAPE_NAMES = {"8b": "llama-3.1-8b", "0.5b": "qwen2.5-0.5b-shaped", "tiny": "tiny"}
WINDOWS = {"8b": (128, 2048), "0.5b": (128, 2048), "tiny": (16, 64)}
BLOCKS, BLOCK_VOCAB = 4, 4096  # of the checkpoints on which blocks alone are timed
PEER_ITERATIONS, PEER_TIMEOUT_SECONDS = 200, 540
# The greatest ratio to the floor, to the peer or to the same without low_memory, or the figure itself.
TARGETS = {"block-8b-paper": ("floor", 1 / 0.9), "block-8b-fast": ("peer", 0.58), "block-8b-default": ("peer", 0.58),
           "block-0.5b-paper": ("floor", 1 / 0.75), "block-0.5b-default": ("figure", 2.8), "block-8b-low-memory": ("default", 1.1), "example-paper": ("figure", 2),
           "job-fast": ("figure", 60), "job-default": ("figure", 90), "job-paper": ("figure", 230), "job-gptq": ("figure", 90),
           "job-rtn": ("floor", 1 / 0.8)}
QUICK = "copy,floor-8b-*,block-8b-paper*,block-8b-default*,block-0.5b-paper*"
GIB = 2**30


class Benchmark:
    """The rows. Each method returns a row's figures: `figure` and `unit` for the table, `text` to be printed, and more."""

    def __init__(self, args, scratch):
        self.args, self.scratch, self.rows = args, scratch, {}
        self.methods = self.list_methods(f"-{args.tuning_precision}" if args.tuning_precision else "")

    def list_methods(self, suffix):
        """{name of the row: (method, arguments)}, in the order of running. `suffix` tells our rows of a precision apart."""
        methods = {"copy": (self.copy,)}
        for shape in ("8b", "0.5b"):
            methods |= {f"floor-{shape}-{precision}": (self.floor, shape, precision) for precision in ("bf16", "fp8")}
        for shape in SHAPE_NAMES:
            methods |= {f"block-{shape}-{name}{suffix}": (self.block, shape, name) for name in ("paper", "fast", "default")}
            methods[f"block-{shape}-gptq"] = (self.gptq_block, shape)
            methods[f"block-{shape}-low-memory{suffix}"] = (self.block, shape, "default", {"low_memory": "on"})
            methods |= {f"peer-{shape}-{mode}": (self.peer, shape, mode) for mode in ("compiled", "eager")}
        methods["example-paper"] = (self.example,)
        for prefix, shape in (("job-tiny", "tiny"), ("job", "8b")):
            methods |= {f"{prefix}-rtn": (self.job, shape, {"algorithm": "rtn"}),
                        f"{prefix}-gptq": (self.job, shape, gptq(shape))}
            methods |= {f"{prefix}-{name}{suffix}": (self.job, shape, recipe(name)) for name in ("fast", "default", "paper")}
        return methods

    def checkpoint(self, shape, **changes):
        config = SHAPES[SHAPE_NAMES[shape]] | changes
        folder = self.scratch / f"{shape}-{config['num_hidden_layers']}-blocks-vocabulary-{config['vocab_size']}"
        if not (folder / "model.safetensors.index.json").exists():
            began = time.monotonic()
            size = write_checkpoint(folder, config)
            print(f"  {folder}: {size / 1e9:.1f} GB written in {time.monotonic() - began:.1f} s", flush=True)
        return folder, config

    def calibration(self, shape, vocab):
        """More windows than any row takes: a tenth is held out."""
        samples, length = WINDOWS[shape]
        file = self.scratch / f"ids-{vocab}-{5 * samples}-{length}.safetensors"
        if not file.exists():
            write_calibration(file, vocab, 5 * samples, length)
        return file

    def run_worker(self, shape, folder, config, changes):
        """(report, seconds of the process, what the text says of both)."""
        samples, length = WINDOWS[shape]
        spec = {"model": str(folder), "calibration": str(self.calibration(shape, config["vocab_size"])), "samples": samples,
                "sequence_length": length, "bits": 4, "group_size": 128, "device": self.args.device} | changes
        if spec["algorithm"] == "rtn":
            del spec["calibration"]
        if spec["algorithm"] == "auto-round":
            spec["iterations"] = self.args.iterations
            if self.args.tuning_precision:
                spec["tuning_precision"] = self.args.tuning_precision
        report, seconds = run(self.args.worker, spec, str(self.scratch / "cache"))
        memory = report["memory"]
        figures = {"seconds": seconds, "timing": report["timing"], "memory": memory, "device": report["device"],
                   "precision": self.args.tuning_precision or "bf16"}
        text = (f"device peak {memory['device_peak_bytes'] / GIB:.1f} GiB in tensors, {memory['device_used_peak_bytes'] / GIB:.1f} in all, "
                f"host peak {memory['host_peak_bytes'] / GIB:.1f} GiB, micro-batches {memory['micro_batches']}")
        for warning in report["warnings"]:
            print(f"  warning: {warning}", flush=True)
        return report, figures, text

    def copy(self):
        from gpu_floors import copy_rate
        return {"figure": copy_rate() / 1e12, "unit": "TB/s", "text": "read and written"}

    def floor(self, shape, precision):
        from gpu_floors import measure
        found = measure(SHAPES[SHAPE_NAMES[shape]], precision)
        parts = ", ".join(f"{name} {part['ms']:.2f} ({part['tflops']:.0f} TFLOP/s)" for name, part in found["parts"].items())
        alone = ", ".join(f"{name} {ms:.2f}" for name, ms in found["attention_alone_ms"].items())
        return found | {"figure": found["paper_ms"], "unit": "ms",
                        "text": f"with the metric's product {found['ms']:.2f}: {parts}; attention alone, both ways: {alone}"}

    def block(self, shape, recipe_name, changes={}):
        folder, config = self.checkpoint(shape, num_hidden_layers=BLOCKS, vocab_size=BLOCK_VOCAB)
        report, figures, memory = self.run_worker(shape, folder, config, recipe(recipe_name) | changes)
        blocks, iterations = report["blocks"][1:], report["tuning"]["iterations"]
        per_block = {key: statistics.mean(block[key] for block in blocks) for key in blocks[0]
                     if key.endswith("seconds") and key != "step_seconds"}
        tuning = per_block["quantize_seconds"] - per_block["search_seconds"]
        step = statistics.mean(block["step_seconds"] for block in blocks)
        ms = {key.removesuffix("_seconds"): 1000 * seconds for key, seconds in per_block.items() if key != "seconds"}
        return figures | {
            "figure": 1000 * step, "unit": "ms/iteration", "iterations": iterations, "per_block": per_block,
            "precision": report["tuning"]["precision"],
            "text": f"{iterations} iterations; a block {per_block['seconds']:.2f} s: tuning {tuning:.2f} ({report['tuning']['precision']}), search "
                    f"{ms['search']:.0f} ms, observe {ms['observe']:.0f}, load {ms['load']:.0f}, export {ms['export']:.0f}, write behind {ms['write']:.0f}; Fisher "
                    f"pass {figures['timing']['fisher_seconds']:.1f} s; {memory}"}

    def gptq_block(self, shape):
        folder, config = self.checkpoint(shape, num_hidden_layers=BLOCKS, vocab_size=BLOCK_VOCAB)
        report, figures, memory = self.run_worker(shape, folder, config, gptq(shape))
        per_block = {key: statistics.mean(block[key] for block in report["blocks"][1:])
                     for key in ("seconds", "load_seconds", "observe_seconds", "quantize_seconds", "export_seconds")}
        parts = ", ".join(f"{key.removesuffix('_seconds')} {seconds:.2f}" for key, seconds in per_block.items() if key != "seconds")
        return figures | {"figure": per_block["seconds"], "unit": "s", "per_block": per_block,
                          "text": f"{gptq(shape)['samples']} windows: {parts} s; whole job {figures['seconds']:.1f} s; {memory}"}

    def peer(self, shape, mode):
        from safetensors.torch import load_file
        folder, config = self.checkpoint(shape, num_hidden_layers=BLOCKS, vocab_size=BLOCK_VOCAB)
        samples, _ = WINDOWS[shape]
        ids = load_file(self.calibration(shape, config["vocab_size"]))["input_ids"][:samples]
        windows = self.scratch / f"windows-{shape}.json"
        windows.write_text(json.dumps(ids.tolist()))
        iterations = self.args.iterations or PEER_ITERATIONS
        found = time_peer(iterations, self.args.device, windows, model=folder, compiled=mode == "compiled",
                          timeout=PEER_TIMEOUT_SECONDS)
        ms = [1000 * block["tuning_seconds"] / iterations for block in found["blocks"]]
        # torch compiles in the first block, and again in some later ones: the fastest block is free of it.
        fastest = min(found["blocks"][1:], key=lambda block: block["tuning_seconds"])
        blocks = ", ".join(f"{figure:.1f}" for figure in ms)
        return found | {"figure": 1000 * fastest["tuning_seconds"] / iterations, "unit": "ms/iteration", "iterations": iterations,
                        "per_block": fastest,
                        "text": f"{iterations} iterations, the fastest block after the first: {fastest['seconds']:.2f} s, tuning "
                                f"{fastest['tuning_seconds']:.2f}; blocks in turn: {blocks} ms/iteration; device peak "
                                f"{found['device_peak_bytes'] / GIB:.1f} GiB"}

    def job(self, shape, changes):
        folder, config = self.checkpoint(shape)
        drop_from_cache(folder)
        report, figures, memory = self.run_worker(shape, folder, config, changes)
        phases = ", ".join(f"{key.removesuffix('_seconds')} {seconds:.1f}" for key, seconds in figures["timing"].items())
        figures |= {"figure": figures["seconds"], "unit": "s", "text": f"{phases}; {memory}"}
        if report["tuning"]:
            figures |= {"precision": report["tuning"]["precision"], "recipe": changes["recipe"],
                        "steps": len(report["blocks"]) * report["tuning"]["iterations"]}
        if changes["algorithm"] == "rtn":
            output_bytes = sum(file["size_bytes"] for file in report["outputs"])
            read, read_seconds = time_reading(folder)
            write_seconds = time_writing(self.scratch / "written", output_bytes)
            figures |= {"disk_seconds": read_seconds + write_seconds,
                        "text": f"{figures['text']}; the disk reads {read / 1e9:.1f} GB in {read_seconds:.1f} s and writes "
                                f"{output_bytes / 1e9:.1f} GB in {write_seconds:.1f} s"}
        return figures

    def example(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            ours = time_ours(self.args.worker, "paper", PEER_ITERATIONS, self.args.device, folder)
            figures = {"figure": ours["parts"]["tuning"], "unit": "s", "ours": ours,
                       "text": f"whole block loop {ours['wall']:.1f} s"}
            if self.args.peer:
                windows = folder / "windows.json"
                windows.write_text(json.dumps(calibration_windows()))
                peer = time_peer(PEER_ITERATIONS, self.args.device, windows, timeout=PEER_TIMEOUT_SECONDS)
                tuning = sum(block["tuning_seconds"] for block in peer["blocks"])
                figures |= {"peer": peer, "peer_figure": tuning,
                            "text": f"{figures['text']}; auto-round eager: tuning {tuning:.1f} s, whole {peer['wall']:.1f} s"}
        return figures

    def references(self, name):
        """{"floor": ..., "peer": ..., "default": ...}: what the row's figure is to be divided by, of what was measured."""
        row, found = self.rows[name], {}
        kind, shape = f"{name}-".split("-")[:2]
        precision = "fp8" if row.get("precision") == "fp8" else "bf16"
        floor = self.rows.get(f"floor-{shape if kind == 'block' else '8b'}-{precision}")
        if floor and kind == "block":
            found["floor"] = floor["paper_ms" if "-paper" in name else "ms"]
        if floor and "steps" in row and shape != "tiny":
            found["floor"] = row["steps"] * floor["paper_ms" if row["recipe"] == "paper" else "ms"] / 1000
        if "disk_seconds" in row:
            found["floor"] = row["disk_seconds"]
        if kind == "block" and f"peer-{shape}-compiled" in self.rows:
            found["peer"] = self.rows[f"peer-{shape}-compiled"]["figure"]
        if "-low-memory" in name and name.replace("low-memory", "default") in self.rows:
            found["default"] = self.rows[name.replace("low-memory", "default")]["figure"]
        if "peer_figure" in row:
            found["peer"] = row["peer_figure"]
        return found

    def verdict(self, name):
        """(ratios, target, whether it is met or None)."""
        row = self.rows[name]
        ratios = {kind: row["figure"] / reference for kind, reference in self.references(name).items()}
        figures = ratios | {"figure": row["figure"]}
        kind, limit = TARGETS.get(re.sub("-(bf16|fp8|auto)$", "", name), (None, None))
        return ratios, f"<= {limit:.3g} {kind}" if kind else "", figures[kind] <= limit if kind in figures else None


def gptq(shape):
    return {"algorithm": "gptq", "samples": 4 * WINDOWS[shape][0]}


def files_of(folder):
    return sorted(path for path in folder.iterdir() if path.is_file())


def drop_from_cache(folder):
    """From the page cache, as far as the kernel obeys: written pages go once they are on the disk."""
    for path in files_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def time_reading(folder):
    """(bytes, seconds) of reading the folder's files from the disk, four at a time."""
    def read(path):
        buffer, total = bytearray(16 << 20), 0
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
        return total

    drop_from_cache(folder)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        total = sum(pool.map(read, files_of(folder)))
    return total, time.monotonic() - began


def time_writing(path, size):
    """Seconds of writing `size` bytes to the disk."""
    chunk = os.urandom(16 << 20)
    began = time.monotonic()
    try:
        with open(path, "wb", buffering=0) as file:
            for offset in range(0, size, len(chunk)):
                file.write(chunk[:size - offset])
            os.fsync(file.fileno())
        return time.monotonic() - began
    finally:
        path.unlink(missing_ok=True)


def selected(benchmark, args):
    """Names of the rows to run."""
    patterns = args.only or (QUICK if args.quick else "*")
    names = [name for name in benchmark.methods
             if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split(","))]
    if not args.only:
        names = [name for name in names if "tiny" not in name]
    return [name for name in names if args.peer or not name.startswith("peer-")]


def print_table(benchmark):
    print(f"\n{'':<26}{'figure':>10} {'unit':<13}{'s a block':>10}{'of the floor':>13}{'of the peer':>13}  {'target':<14}")
    order = [*benchmark.methods, *benchmark.rows]  # rows of another precision last
    for name in sorted(benchmark.rows, key=order.index):
        row = benchmark.rows[name]
        ratios, target, met = benchmark.verdict(name)
        block = f"{row['per_block']['seconds']:.2f}" if "per_block" in row else ""
        shown = [f"{ratios[kind]:.2f}" if kind in ratios else "" for kind in ("floor", "peer")]
        print(f"{name:<26}{row['figure']:>10.2f} {row['unit']:<13}{block:>10}{shown[0]:>13}{shown[1]:>13}  {target:<14}"
              f"{'' if not target else 'not compared' if met is None else 'met' if met else 'MISSED'}".rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names of the rows that would run")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK}")
    parser.add_argument("--only", metavar="PATTERN,...", help="only these rows; * stands for anything")
    parser.add_argument("--peer", choices=["auto", "yes", "no"], default="auto", help="auto: if auto_round is installed")
    parser.add_argument("--scratch", type=pathlib.Path, help="keep the models here between runs (default: a temporary folder)")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures here, row by row")
    parser.add_argument("--tuning-precision", choices=["bf16", "fp8", "auto"], help="of our products (default: not passed)")
    parser.add_argument("--iterations", type=int, default=0, help="of auto-round and of the peer (default: the recipe's, 200)")
    parser.add_argument("--device", default="cuda", help="cpu only for the tiny rows")
    parser.add_argument("--worker", default=str(ROOT / "build" / "bin" / "ptq-worker"))
    args = parser.parse_args()
    args.peer = args.peer == "yes" or args.peer == "auto" and importlib.util.find_spec("auto_round") is not None
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (args.scratch or pathlib.Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(scratch)  # the jobs' output, too, may be large
        benchmark = Benchmark(args, scratch)
        chosen, failed = selected(benchmark, args), []
        if args.list or not chosen:
            print("\n".join(chosen) or "no such row")
            return 0 if chosen else 2
        import torch
        if args.device == "cuda" and not torch.cuda.is_available():
            sys.exit("there is no NVIDIA GPU here that torch can use")
        machine = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        print(f"{machine}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores" +
              ("" if args.peer else ", without the peer"), flush=True)
        if args.json and args.json.exists():
            earlier = json.loads(args.json.read_text())
            benchmark.rows = earlier["rows"] if earlier["machine"] == machine else {}
        for name in chosen:
            method, *arguments = benchmark.methods[name]
            benchmark.rows.pop(name, None)
            began = time.monotonic()
            try:
                row = method(*arguments)
            except (Exception, SystemExit) as error:  # one row's failure is not the others'
                failed.append(name)
                print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
                continue
            torch.cuda.empty_cache()
            benchmark.rows[name] = row
            ratios, _, _ = benchmark.verdict(name)
            print(f"{name}: {row['figure']:.2f} {row['unit']}" +
                  "".join(f", {ratio:.2f} of the {kind}" for kind, ratio in ratios.items()) +
                  f"; {row['text']} [{time.monotonic() - began:.0f} s]", flush=True)
            if args.json:
                args.json.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": benchmark.rows}, indent=1))
        print_table(benchmark)
    missed = [name for name in chosen if name in benchmark.rows and benchmark.verdict(name)[2] is False]
    for what, names in (("failed", failed), ("missed", missed)):
        if names:
            print(f"{what}: {', '.join(names)}")
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
