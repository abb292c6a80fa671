#!/usr/bin/env bash
# Lists the C++, CUDA and proto sources that the project owns.
cd "$(dirname "$0")/.." && git ls-files -co --exclude-standard '*.h' '*.cc' '*.cu' '*.proto' | sort
