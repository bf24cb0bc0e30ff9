#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, in one call of less than nine minutes: build, tests,
# compute-sanitizer, benchmarks. A step that fails or runs out of time does not stop the next ones;
# the exit status says whether one did. Logs and CSV files go to $OUT.
#
#   OUT=benchmarks/results PYTHON=python3 benchmarks/gpu.sh

set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
log="$out/gpu.log"
deadline=$((SECONDS + 530))
table="step                 result   seconds"
failed=0
mkdir -p "$out"
: >"$log"
export PYTHONUNBUFFERED=1

# step NAME LIMIT_IN_SECONDS COMMAND...
step() {
  local name=$1 limit=$2 start=$SECONDS status result
  shift 2
  local left=$((deadline - SECONDS))
  if ((left < limit)); then limit=$((left > 1 ? left : 1)); fi
  printf '\n=== %s: %s\n' "$name" "$*" | tee -a "$log"
  timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1
  status=$?
  case $status in
    0) result=ok ;;
    124 | 137) result=TIMEOUT ;;
    *) result="FAILED $status" ;;
  esac
  if ((status != 0)); then
    failed=1
    tail -n 25 "$log"
  fi
  table+=$(printf '\n%-20s %-8s %4d' "$name" "$result" $((SECONDS - start)))
}

device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_"))') ||
  device=no_gpu

step build 180 "$python" setup.py build_ext --inplace
step tests-gpu 120 "$python" -m pytest -q -m gpu
for tool in memcheck racecheck; do
  step "$tool" 90 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m benchmarks.sanitize_shapes
done
for dtype in bfloat16 float32; do
  step "pooling-$dtype" 120 "$python" -m benchmarks.pooling --device cuda --dtype "$dtype" \
    --seconds 0.2 --csv "$out/pooling-$device-$dtype.csv"
  sed -n "/=== pooling-$dtype/,\$p" "$log" | tail -n 30
done
step dense-crf 100 "$python" -m benchmarks.dense_crf --device cuda --no-memory --seconds 0.3 \
  --csv "$out/dense-crf-$device.csv"
sed -n "/=== dense-crf/,\$p" "$log" | tail -n 40
step tests-cpu 180 "$python" -m pytest -q -m "not gpu"

printf '\n%s on %s\n%s\n' "$(git rev-parse --short HEAD 2>/dev/null)" "$device" "$table"
exit $failed
