#!/usr/bin/env bash
# Installs what cibuildwheel's builds for all Pythons share: the oldest torch and, asked for, nvcc.
set -euo pipefail
python=/opt/python/cp312-cp312/bin/python
install="$python -m pip install --no-deps --target /opt/fastseg"
$install "torch==2.11.*"
if [ "${FASTSEG_CUDA:-0}" = 1 ]; then
  $install nvidia-{cuda-nvcc,nvvm,cuda-crt,cuda-runtime,cuda-cccl}==13.0.*
fi
