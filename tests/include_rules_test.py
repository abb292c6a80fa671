#!/usr/bin/env python3
"""Enforces ARCHITECTURE.md's include table: which folder may include which, and who may see which library."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Folder -> folders whose headers it may include, besides its own. The longest matching folder counts.
MAY_INCLUDE = {
    "common": [],
    "formats/headers": ["common"],
    "worker/spec": ["common", "formats/headers"],
    "algorithms/cuda": ["common", "algorithms/auto_round/learned_scale_math.h", "algorithms/auto_round/learned_scale_state.h",
                        "algorithms/auto_round/rounding_math.h", "algorithms/auto_round/rounding_state.h",
                        "algorithms/auto_round/tuning_state.h", "algorithms/auto_round/weight_layout.h",
                        "algorithms/gptq/gptq_tile_state.h", "algorithms/rtn/scale_search_math.h", "algorithms/rtn/scale_search_state.h"],
    "algorithms/affine": ["common"],
    "formats": ["common", "formats/headers", "algorithms/affine"],
    "models": ["common", "formats/headers", "formats/checkpoint_reader.h", "algorithms/cuda"],
    "observers": ["common", "models", "algorithms/cuda"],
    "algorithms": ["common", "algorithms/affine", "algorithms/cuda", "models", "observers"],
    "worker": ["common", "formats", "formats/headers", "algorithms", "algorithms/affine", "algorithms/cuda",
               "models", "observers", "worker/spec"],
    "server/errors": ["common"],
    "server/store": ["common", "server/errors"],
    "server/blobs": ["common", "server/errors", "server/store"],
    "proto": [],
    "server/jobs": ["common", "proto", "formats/headers", "worker/spec", "server/errors", "server/store", "server/blobs"],
    "server/rpc": ["common", "formats/headers", "worker/spec", "server/errors", "server/jobs", "server/store",
                   "server/blobs"],
    "server": ["common", "server/store", "server/blobs", "server/jobs", "server/rpc"],
    "client": ["common", "proto", "formats/headers", "worker/spec"],
    "tests": None,  # anything
}
TORCH = ("ATen/", "c10/", "torch/")
RPC = ("grpcpp/", "grpc/", "google/", "ptq/v1/")
# Library -> the only folders or files that may include it.
ONLY_IN = {
    TORCH: ["common/torch_status", "algorithms", "formats", "models", "observers", "worker", "tests"],
    RPC: ["proto", "server", "client", "tests"],
    ("sqlite3.h", "libpq-fe.h"): ["server/store"],
    ("spdlog/", "fmt/"): ["common/logging.cc"],
    ("re2/",): ["formats/module_pattern", "formats/headers/loader_rules", "worker/spec", "tests"],
}
# Folders inside a torch-using folder that must stay torch-free, because ptqd links them.
TORCH_FREE = ["formats/headers", "worker/spec", "server", "client"]
FORBIDDEN = {"torch/torch.h", "torch/nn.h", "glog/logging.h"}


def owner(path, folders):
    best = None
    for folder in folders:
        if (path == folder or path.startswith(folder + "/")) and (best is None or len(folder) > len(best)):
            best = folder
    return best


def under(path, places):
    return any(path == p or path.startswith(p + "/") or path.startswith(p + ".") for p in places)


def check(path, text):
    here = owner(path, MAY_INCLUDE)
    if here is None:
        return
    torch = rpc = False
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
        if not match:
            continue
        header = match.group(1)
        where = f"{path}:{number}: "
        if header in FORBIDDEN:
            yield where + f"{header} is forbidden (slow to compile); include ATen/ops/*.h"
        for prefixes, places in ONLY_IN.items():
            if header.startswith(prefixes) and not under(path, places):
                yield where + f"{header} may be included in {', '.join(places)} only"
        torch |= header.startswith(TORCH)
        rpc |= header.startswith(RPC)
        if header.startswith(TORCH) and under(path, TORCH_FREE):
            yield where + f"{header}: {here} is torch-free"
        if not (ROOT / header).exists():
            continue
        allowed = MAY_INCLUDE[here]
        target = owner(header, MAY_INCLUDE)
        if allowed is None or target == here or target in allowed or header in allowed:
            continue
        yield where + f"{here} may not include {header}"
    if torch and rpc:
        yield f"{path}: includes libtorch and protobuf or gRPC; the wheel's copies would clash"


def main():
    problems = []
    count = 0
    for folder in sorted({f.split("/")[0] for f in MAY_INCLUDE}):
        for source in sorted((ROOT / folder).rglob("*")):
            if source.suffix in (".h", ".cc", ".cu", ".cuh"):
                count += 1
                problems += check(source.relative_to(ROOT).as_posix(), source.read_text(encoding="utf-8"))
    # The rules must be able to fail: these lines break one each.
    probes = {
        "common/x.cc": '#include "models/linear.h"', "server/rpc/x.cc": "#include <ATen/ATen.h>",
        "worker/x.cc": "#include <grpcpp/grpcpp.h>", "algorithms/gptq/x.cc": '#include "formats/tokenizer.h"',
        "models/x.cc": '#include "observers/block_inputs.h"', "models/y.cc": '#include "algorithms/auto_round/fused_pass.h"', "client/x.cc": "#include <sqlite3.h>",
    }
    for path, line in probes.items():
        if not list(check(path, line)):
            problems.append(f"{path}: the probe `{line}` was not refused")
    print("\n".join(problems) or f"{count} files keep the include table; {len(probes)} probes were refused")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
