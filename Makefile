# Short names for what developers and CI run. Everything that is missing is installed by tools/setup.sh.
BUILD ?= build
JOBS ?= $(shell nproc)

.PHONY: demo test test-long build setup format check bench cuda-check gpu-build gpu-test bench-gpu clean

demo: build              ## quantize the example model over gRPC by every algorithm: demo-output/
	.venv/bin/python tools/demo.py --build $(BUILD) --output demo-output

test: build              ## every test: C++, real binaries, Python interop
	tools/setup.sh peers
	ctest --test-dir $(BUILD) --output-on-failure -LE 'gpu|long'

test-long: build         ## cells that take longer: loaders that have to be built, llm-compressor's own files
	tools/setup.sh long
	ctest --test-dir $(BUILD) --output-on-failure -L long

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

cuda-check:              ## does the CUDA part compile and link, for an H100? Needs no GPU
	tools/setup.sh cuda
	cmake -S . -B $(BUILD)-cuda -G Ninja -DPTQ_CUDA_ARCHITECTURES=90a -DPTQ_BUILD_SERVER=OFF -DPTQ_BUILD_TESTS=OFF \
	  -DPTQ_BUILD_BENCHMARKS=OFF
	ninja -C $(BUILD)-cuda -j $(JOBS) ptq_cuda

gpu-build:
	tools/setup.sh cuda
	cmake -S . -B $(BUILD) -G Ninja
	ninja -C $(BUILD) -j $(JOBS)

gpu-test: gpu-build      ## on a machine with an NVIDIA GPU: build with CUDA, GPU tests, GPU figures
	tools/setup.sh peers
	ctest --test-dir $(BUILD) --output-on-failure -L gpu

bench-gpu: gpu-build     ## there too: tuning against what the GPU could do at best and against auto-round (an hour)
	tools/setup.sh benchmarks
	.venv/bin/python tests/benchmarks/gpu_benchmark.py --worker $(BUILD)/bin/ptq-worker

clean:
	rm -rf $(BUILD) demo-output
