# Short names for what developers and CI run. Everything that is missing is installed by tools/setup.sh.
BUILD ?= build
JOBS ?= $(shell nproc)

.PHONY: demo test build setup format check bench gpu-test clean

demo: build              ## quantize the example model over gRPC by every algorithm: demo-output/
	.venv/bin/python tools/demo.py --build $(BUILD) --output demo-output

test: build              ## every test: C++, real binaries, Python interop
	tools/setup.sh peers
	ctest --test-dir $(BUILD) --output-on-failure -LE gpu

setup:
	tools/setup.sh

build: setup             ## build/bin/{ptqd,ptq,ptq-worker}
	cmake -S . -B $(BUILD) -G Ninja
	ninja -C $(BUILD) -j $(JOBS)

format:                  ## rewrite our sources in the project's format
	tools/sources.sh | xargs clang-format -i

check:                   ## formatting and the include table, nothing else
	tools/sources.sh | xargs clang-format --dry-run --Werror
	python3 tests/include_rules_test.py

bench: build             ## the README's figures, measured here (an hour on two cores)
	tools/setup.sh benchmarks
	.venv/bin/python tests/benchmarks/run_all.py --build $(BUILD)

gpu-test:                ## on a machine with an NVIDIA GPU: build with CUDA, GPU tests, GPU figures
	tools/setup.sh cuda
	cmake -S . -B $(BUILD) -G Ninja
	ninja -C $(BUILD) -j $(JOBS)
	ctest --test-dir $(BUILD) --output-on-failure -L gpu

clean:
	rm -rf $(BUILD) demo-output
