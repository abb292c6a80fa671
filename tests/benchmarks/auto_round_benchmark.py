#!/usr/bin/env python3
"""Tuning time against intel/auto-round in eager mode, paired: both quantize the example model in turn.

auto_round_benchmark.py [--recipe paper|fast|default|best] [--iterations 200] [--pairs 1] [--device cpu|cuda]
                        [--worker build/bin/ptq-worker]
--iterations are the peer's, and ours in the paper's recipe; the others take as many as they do (20, 60, 100). Otherwise
equal settings: W4G128 symmetric, batch 8, the same 128 x 512 calibration tokens, the same threads. Compared is the time
of the block loop (both sides: capture, reference outputs, tuning and packing, ours with the Fisher pass; loading is left
out), by wall clock and by processor. The peer takes bfloat16 products, which a CPU without AMX or AVX512-BF16 runs
slowly: fewer --iterations compare such machines in reasonable time. Exits 1 above the target: half of the peer's wall
time with the paper's recipe, 0.12 of it with `fast`.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "wikilm-llama-6m"
CALIBRATION = ROOT / "examples" / "calibration.jsonl"
SAMPLES, LENGTH, BATCH = 128, 512, 8
TARGETS = {"paper": 0.5, "fast": 0.12}


def calibration_windows():
    """The windows that ptq-worker makes: documents without special tokens, an EOS after each, joined and cut."""
    from transformers import AutoTokenizer
    tokenizer, ids = AutoTokenizer.from_pretrained(MODEL), []
    for line in CALIBRATION.read_text(encoding="utf-8").splitlines():
        ids += tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if len(ids) >= SAMPLES * LENGTH:
            break
    return [ids[i * LENGTH:(i + 1) * LENGTH] for i in range(SAMPLES)]


def note_blocks(synchronize):
    """Makes the peer note, for each block, when it began and the seconds of its tuning alone."""
    from auto_round.algorithms.composer import AlgorithmComposer
    from auto_round.algorithms.quantization.sign_round.quantizer import SignRoundQuantizer
    began, tuning = [], []
    dispatch_block, quantize_block = AlgorithmComposer.dispatch_block, SignRoundQuantizer.quantize_block

    def dispatch(self, *args, **kwargs):
        synchronize()
        began.append(time.monotonic())
        return dispatch_block(self, *args, **kwargs)

    def quantize(self, *args, **kwargs):
        synchronize()
        start = time.monotonic()
        result = quantize_block(self, *args, **kwargs)
        synchronize()
        tuning.append(time.monotonic() - start)
        return result

    AlgorithmComposer.dispatch_block, SignRoundQuantizer.quantize_block = dispatch, quantize
    return began, tuning


def run_peer(iterations, device, windows_file, model_folder, compiled):
    """One run of the peer in this process; prints its block loop's seconds, and each block's."""
    import torch
    try:
        from auto_round import AutoRound
    except ImportError as error:
        sys.exit(f"{error}: run tools/setup.sh benchmarks")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    with open(windows_file, encoding="utf-8") as file:
        windows = json.load(file)
    # No attention mask: a 4-D one would send the peer's attention down a slower path.
    data = [{"input_ids": torch.tensor([window]), "attention_mask": None} for window in windows]
    # It insists on a tokenizer, and gets the example's for other models too: it has token ids already.
    peer = AutoRound(model, AutoTokenizer.from_pretrained(MODEL), bits=4, group_size=128, sym=True, iters=iterations,
                     nsamples=len(windows), seqlen=len(windows[0]), batch_size=BATCH, dataset=data, device_map=device,
                     enable_torch_compile=compiled, seed=42)
    cuda = device == "cuda"
    began, tuning = note_blocks(torch.cuda.synchronize if cuda else lambda: None)
    wall, cpu = time.monotonic(), time.process_time()
    peer.quantize()
    end = time.monotonic()
    blocks = [{"seconds": after - before, "tuning_seconds": seconds}
              for before, after, seconds in zip(began, began[1:] + [end], tuning, strict=True)]
    print(json.dumps({"wall": end - wall, "cpu": time.process_time() - cpu, "blocks": blocks,
                      "device_peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
                      "torch": torch.__version__, "threads": torch.get_num_threads()}))


def time_peer(iterations, device, windows_file, model=MODEL, compiled=False, timeout=None):
    done = subprocess.run([sys.executable, __file__, "--peer", str(windows_file), "--iterations", str(iterations),
                           "--device", device, "--model", str(model)] + ["--compiled"] * compiled,
                          capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        sys.exit(f"the peer failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def time_ours(worker, recipe, iterations, device, folder):
    spec = {"model": str(MODEL), "calibration": str(CALIBRATION), "algorithm": "auto-round", "recipe": recipe,
            "bits": 4, "group_size": 128, "iterations": iterations if recipe == "paper" else 0,
            "batch_size": BATCH, "samples": SAMPLES, "sequence_length": LENGTH, "seed": 42, "device": device}
    (folder / "job.json").write_text(json.dumps(spec))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([worker, "run", "--spec", folder / "job.json", "--output", folder / "out"],
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"ptq-worker failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    timing = json.loads((folder / "out" / "report.json").read_bytes())["timing"]
    parts = {"chains and statistics": timing["observe_seconds"], "Fisher pass": timing["fisher_seconds"],
             "search": timing["search_seconds"], "tuning": timing["quantize_seconds"] - timing["search_seconds"],
             "export": timing["export_seconds"]}
    return {"wall": sum(parts.values()), "parts": parts,
            "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="paper", choices=["paper", "fast", "default", "best"])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--worker", default=str(ROOT / "build" / "bin" / "ptq-worker"))
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--model", default=MODEL, help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return run_peer(args.iterations, args.device, args.peer, args.model, args.compiled)

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        windows_file = pathlib.Path(folder) / "windows.json"
        windows_file.write_text(json.dumps(calibration_windows()))
        for pair in range(args.pairs):
            run_folder = pathlib.Path(folder) / f"ours-{pair}"
            run_folder.mkdir()
            # In turn, and the other one first every second time: a drifting machine hits both alike.
            sides = [lambda: ("ours", time_ours(args.worker, args.recipe, args.iterations, args.device, run_folder)),
                     lambda: ("peer", time_peer(args.iterations, args.device, windows_file))]
            result = dict(side() for side in (sides if pair % 2 == 0 else sides[::-1]))
            ours, peer = result["ours"], result["peer"]
            ratios.append(ours["wall"] / peer["wall"])
            print(f"pair {pair + 1}: {args.recipe} on {args.device}, {len(os.sched_getaffinity(0))} cores: "
                  f"ours {ours['wall']:.1f} s (processor {ours['cpu']:.1f} s: "
                  + ", ".join(f"{name} {seconds:.1f}" for name, seconds in ours["parts"].items()) + "), "
                  f"auto-round eager, {args.iterations} iterations, {peer['wall']:.1f} s (processor {peer['cpu']:.1f} s), "
                  f"ratio {ratios[-1]:.3f}", flush=True)
    ratio = statistics.median(ratios)
    target = TARGETS.get(args.recipe)
    met = target is None or ratio <= target
    print(f"median ratio {ratio:.3f}" + ("" if target is None else f", target <= {target}: {'met' if met else 'MISSED'}"))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
