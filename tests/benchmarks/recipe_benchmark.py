#!/usr/bin/env python3
"""Whether the recipe's lead over the published Auto-Round holds beyond the figures that it was developed on.

recipe_benchmark.py [--device cpu|cuda] [--seeds 42,43,44] [--jobs N] [--worker build/bin/ptq-worker]
1. Seven schemes: `fast` (20 iterations) against `paper` (200), mean KLD over the seeds on WikiText-2.
2. Other texts: all recipes at 4, 3 and 2 bits on three random halves of the WikiText-2 paragraphs, and on text that is
   not from Wikipedia: this project's documentation and its source code.
Exits 1 if a recipe is worse than `paper` anywhere by more than the spread between seeds.
"""
import argparse
import concurrent.futures
import pathlib
import random
import sys
import tempfile

from quality_benchmark import EXAMPLES, ROOT, base_spec, recipe, run

SCHEMES = {
    "W2 group 128": {"bits": 2}, "W3 group 64": {"bits": 3, "group_size": 64}, "W4 group 32": {"bits": 4, "group_size": 32},
    "W4 channel": {"bits": 4, "group_size": -1}, "W4 group 128 asymmetric": {"bits": 4, "asymmetric": True},
    "W2 group 32 asymmetric": {"bits": 2, "group_size": 32, "asymmetric": True}, "W8 group 128": {"bits": 8},
}
RECIPES = ("paper", "fast", "default", "best")


def write_texts(folder):
    texts = {}
    paragraphs = (EXAMPLES / "evaluation.txt").read_text(encoding="utf-8").split("\n")
    for seed in (1, 2, 3):
        chosen = sorted(random.Random(seed).sample(range(len(paragraphs)), len(paragraphs) // 2))
        texts[f"half {seed}"] = "\n".join(paragraphs[i] for i in chosen)
    documents = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
    texts["documentation"] = "\n".join(path.read_text(encoding="utf-8") for path in documents)
    sources = sorted(path for name in ("algorithms", "models", "observers", "worker") for path in (ROOT / name).rglob("*.cc"))
    texts["source code"] = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for name, text in texts.items():
        (folder / (name.replace(" ", "-") + ".txt")).write_text(text, encoding="utf-8")
    return {name: str(folder / (name.replace(" ", "-") + ".txt")) for name in texts}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--worker", default=str(ROOT / "build" / "bin" / "ptq-worker"))
    args = parser.parse_args()
    seeds = [int(s) for s in args.seeds.split(",")]
    worse = []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        texts = write_texts(pathlib.Path(folder))
        cache = str(pathlib.Path(folder) / "cache")

        def submit(changes):
            return pool.submit(
                lambda: run(args.worker, base_spec(args.device) | changes, cache)[0]["evaluation"]["quantized"]["mean_kld"])

        schemes = {(scheme, name): [submit(recipe(name, **changes) | {"seed": seed}) for seed in seeds]
                   for scheme, changes in SCHEMES.items() for name in ("fast", "paper")}
        others = {(text, bits, name): submit(recipe(name, bits=bits, evaluation=path))
                  for text, path in texts.items() for bits in (4, 3, 2) for name in RECIPES}
        print(f"{'mean KLD, spread of the seeds':<30}{'fast, 20 iterations':>22}{'paper, 200':>22}{'ratio':>8}", flush=True)
        for scheme in SCHEMES:
            fast, paper = ([f.result() for f in schemes[scheme, name]] for name in ("fast", "paper"))
            means = sum(fast) / len(fast), sum(paper) / len(paper)
            spreads = max(fast) - min(fast), max(paper) - min(paper)
            print(f"{scheme:<30}{means[0]:>13.6f} {spreads[0]:>8.6f}{means[1]:>13.6f} {spreads[1]:>8.6f}"
                  f"{means[0] / means[1]:>8.3f}", flush=True)
            if means[0] - means[1] > max(spreads):
                worse.append(scheme)
        print(f"\n{'mean KLD over paper':<30}" + "".join(f"{name:>10}" for name in RECIPES), flush=True)
        for text in texts:
            for bits in (4, 3, 2):
                results = {name: others[text, bits, name].result() for name in RECIPES}
                print(f"{text + f', W{bits}':<30}{results['paper']:>10.4f}" +
                      "".join(f"{results[name] / results['paper']:>10.3f}" for name in RECIPES[1:]), flush=True)
                worse += [f"{text}, W{bits}, {name}" for name in RECIPES[1:] if results[name] > 1.02 * results["paper"]]
    print("worse than paper: " + (", ".join(worse) or "nowhere"))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
