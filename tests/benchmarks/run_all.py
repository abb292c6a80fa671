#!/usr/bin/env python3
"""`make bench`: every figure of the README that a test does not print, one after the other."""
import argparse
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build")
    build = (ROOT / parser.parse_args().build).resolve()
    worker = ["--worker", build / "bin" / "ptq-worker"]
    steps = {
        "upload on loopback": [build / "tests" / "upload_benchmark", "--data-dir", "/dev/shm"],
        "peak memory": [sys.executable, HERE / "memory_benchmark.py", "--build", build],
        "Auto-Round against the peer": [sys.executable, HERE / "auto_round_benchmark.py", "--iterations", "20", *worker],
        "quality": [sys.executable, HERE / "quality_benchmark.py", *worker],
    }
    failed = []
    for name, command in steps.items():
        print(f"\n── {name} ──", flush=True)
        if subprocess.run([str(part) for part in command], cwd=ROOT).returncode != 0:
            failed.append(name)
    print("\n" + (f"missed: {', '.join(failed)}" if failed else "every target was reached"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
