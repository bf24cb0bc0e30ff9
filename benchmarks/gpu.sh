#!/usr/bin/env bash
# What one call of less than nine minutes on an NVIDIA GPU can tell.
#
#   OUT=build/gpu PYTHON=python3 benchmarks/gpu.sh [SECTION...]
#
# Sections, in the order in which they run:
#   dense-crf, pooling, heads, conv, calls   figures, the essential ones first
#   tests                                    tests/gpu
#   profile, ncu                             torch.profiler; Nsight Compute if it is there
#   sanitize                                 compute-sanitizer over small shapes
# "calibrate", of four minutes and only if it is named, measures the constants of
# benchmarks.gpu_model, then block shapes of atrous convolution.
#
# OUT gets three files: figures.csv, with a row for each result as soon as it is there; summary.txt,
# the table that also ends the output, in less than 12,000 characters; logs.tar.gz. A case or a
# command that fails, hangs or crashes is a row that says so, and the next one runs. The exit status
# is 1 if there is such a row.
#
# On a machine where nothing can be built, first run this where it can (g++, nvcc; no GPU):
#
#   CUDA_ARCHS=90 benchmarks/gpu.sh prepare
#
# and carry, beside the source tree, what git ignores: fastseg/_C.so, fastseg/_C_cuda.so,
# fastseg/_launch.abi3.so and build/gpu_model.csv, the modelled times. They hold no Python's
# version; the machine's torch must be 2.11 or later. fastseg/_host*.so does, and is not needed.

set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if [[ ${1:-} == prepare ]]; then
  FASTSEG_CUDA=1 FASTSEG_CUDA_ARCHS=${CUDA_ARCHS:-90} "$python" setup.py build_ext --inplace
  "$python" -m benchmarks.gpu_model --csv build/gpu_model.csv
  exit
fi
export PYTHONUNBUFFERED=1
exec "$python" -m benchmarks.gpu --out "${OUT:-build/gpu}" "$@"
