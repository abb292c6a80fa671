#!/usr/bin/env bash
# Installs what a build needs and is not there yet: Debian packages, a .venv with pinned wheels, cargo.
#   tools/setup.sh [base | peers | long | benchmarks | cuda]
# base         what building and the demo need
# peers        and the wheels and npm packages that the interop tests compare with
# long         and the programs of the long tests: a loader that is built from source, llm-compressor
# benchmarks   and what compiling the peer needs, to be timed
# cuda         and NVIDIA's compiler from PyPI, for the CUDA part
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-base}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
say() { printf 'setup: %s\n' "$*" >&2; }

# Debian packages.
mapfile -t wanted < <(grep -v '^#' deploy/debian-packages.txt)
if ! command -v cargo >/dev/null || ! cargo --version | awk '{split($2, v, "."); exit !(v[1] > 1 || v[2] >= 80)}'; then
  wanted+=(cargo-web rustc-web)  # Debian 12's plain cargo is too old for the tokenizers crate
fi
headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null || true)
if [[ $what = benchmarks || $what = long ]] && [ ! -f "$headers/Python.h" ]; then
  wanted+=(python3-dev)  # torch.compile, by which the peer is timed on a GPU, and GPTQModel build extensions
fi
if [[ $what = peers || $what = long || $what = benchmarks ]] && ! command -v npm >/dev/null; then
  wanted+=(npm)
fi
missing=()
for package in "${wanted[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Python wheels, each list installed once per content.
[ -x .venv/bin/python ] || { say "creating .venv"; python3 -m venv .venv; }
install_wheels() {
  local list=deploy/requirements-$1.txt stamp=.venv/.ptq-$1
  [ -f "$stamp" ] && cmp -s "$list" "$stamp" && return
  say "installing the wheels of $list"
  .venv/bin/pip install -q --disable-pip-version-check ${2:-} -r "$list"
  cp "$list" "$stamp"
}
# An environment in .venv/gptqmodel that sees .venv's packages behind its own.
install_gptqmodel() {
  local list=deploy/requirements-gptqmodel.txt home=.venv/gptqmodel
  cmp -s "$list" "$home/.ptq-stamp" && return
  say "installing $list into $home"
  python3 -m venv "$home"
  (cd .venv/lib/python3*/site-packages && pwd) > "$(echo "$home"/lib/python3*/site-packages)/outer.pth"
  grep -v '^gptqmodel' "$list" | "$home/bin/pip" install -q --disable-pip-version-check -r /dev/stdin
  BUILD_CUDA_EXT=0 "$home/bin/pip" install -q --disable-pip-version-check --no-build-isolation -r "$list" torch==2.11.0
  cp "$list" "$home/.ptq-stamp"
}
# An environment in .venv/llmcompressor, likewise.
install_llmcompressor() {
  local list=deploy/requirements-llmcompressor.txt home=.venv/llmcompressor
  cmp -s "$list" "$home/.ptq-stamp" && return
  say "installing $list into $home"
  python3 -m venv "$home"
  (cd .venv/lib/python3*/site-packages && pwd) > "$(echo "$home"/lib/python3*/site-packages)/outer.pth"
  "$home/bin/pip" install -q --disable-pip-version-check --no-deps -r "$list"
  cp "$list" "$home/.ptq-stamp"
}
# The packages of a list, below .venv/npm.
install_npm() {
  local list=deploy/npm-$1.txt stamp=.venv/.npm-$1 packages
  [ -f "$stamp" ] && cmp -s "$list" "$stamp" && return
  say "installing the npm packages of $list"
  mapfile -t packages < <(grep -v '^#' "$list")
  npm install --prefix .venv/npm --omit=optional --no-audit --no-fund --loglevel=error "${packages[@]}" >&2
  cp "$list" "$stamp"
}
# auto-round would bring another torch and more, which what we call of it does not need.
install_peers() { install_wheels peers; install_wheels peers-no-deps --no-deps; install_npm peers; }
install_wheels base
case $what in
  base) ;;
  peers) install_peers ;;
  long) install_peers; install_gptqmodel; install_llmcompressor ;;
  benchmarks) install_peers ;;
  cuda) install_wheels cuda ;;
  *) say "unknown part '$what'"; exit 2 ;;
esac

# Python stubs of the API, for examples/pipeline.py and the integration tests.
if [ ! -f .venv/ptq_stubs/ptq/v1/quantization_service_pb2_grpc.py ] || \
   [ -n "$(find proto -name '*.proto' -newer .venv/ptq_stubs/.stamp 2>/dev/null)" ]; then
  mkdir -p .venv/ptq_stubs
  (cd proto && find ptq google -name '*.proto' -print0 | xargs -0 ../.venv/bin/python -m grpc_tools.protoc \
    --proto_path=. --python_out=../.venv/ptq_stubs --grpc_python_out=../.venv/ptq_stubs)
  touch .venv/ptq_stubs/.stamp
fi
