#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, in one call of less than nine minutes.
#
#   OUT=benchmarks/results PYTHON=python3 benchmarks/gpu.sh [SECTION...]
#
# Sections, in the order in which they run; all but the last two without arguments:
#   build          the compiled libraries; "conv" and "autotune" need none
#   tests          on the GPU, of the compiled ops
#   sanitize       the compiled ops under compute-sanitizer
#   conv           atrous convolution: tests, compute-sanitizer, benchmark
#   pooling        benchmark
#   dense-crf      benchmark
#   tests-cpu      on the CPU
#   models         SegNet after fastseg.optimize_, and fastseg's own models, beside torch's ops
#   autotune       measures block shapes of atrous convolution, then the benchmark with the fastest
#
# Tests and sanitizers run side by side, since most of their time goes to compilers on the CPU;
# benchmarks run alone. A step that fails or runs out of time does not stop the next ones; the exit
# status says whether one did. Logs, one a step, and CSV files go to $OUT.

set -uo pipefail
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
all="build tests sanitize conv pooling dense-crf tests-cpu"
more="models autotune"
sections=" ${*:-$all} "
for section in $sections; do
  if [[ " $all $more " != *" $section "* ]]; then
    echo "gpu.sh: no section '$section'; there are: $all $more" >&2
    exit 2
  fi
done
deadline=$((SECONDS + 530))
table="step                        result   seconds"
failed=0
begun=()
mkdir -p "$out"
state=$(mktemp -d)
linked=
trap 'rm -rf "$state"; [[ -z $linked ]] || rm -f "$linked"' EXIT
export PYTHONUNBUFFERED=1

wants() { [[ $sections == *" $1 "* ]]; }

# begin NAME LIMIT_IN_SECONDS COMMAND...: beside what else has begun
begin() {
  local name=$1 limit=$2
  shift 2
  local left=$((deadline - SECONDS))
  if ((left < limit)); then limit=$((left > 1 ? left : 1)); fi
  printf '=== %s: %s\n' "$name" "$*"
  (
    start=$SECONDS
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
    echo "$? $((SECONDS - start))" >"$state/$name"
  ) &
  begun+=("$name")
}

# finish: waits for what has begun
finish() {
  local name status seconds result
  wait
  for name in "${begun[@]}"; do
    read -r status seconds <"$state/$name"
    case $status in
      0) result=ok ;;
      124 | 137) result=TIMEOUT ;;
      *) result="FAILED $status" ;;
    esac
    if ((status != 0)); then
      failed=1
      printf '\n--- the end of %s.log\n' "$name"
      tail -n 25 "$out/$name.log" | cut -c1-300
    fi
    table+=$(printf '\n%-27s %-8s %4d' "$name" "$result" "$seconds")
  done
  begun=()
}

# step NAME LIMIT_IN_SECONDS COMMAND...: alone
step() {
  begin "$@"
  finish
}

device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_"))') ||
  device=no_gpu
sanitize=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1
  --target-processes application-only)
conv_tests=(tests/gpu/test_gpu_{atrous_conv2d,atrous_conv2d_grad,aspp}.py)
conv=("$python" -m benchmarks.atrous_conv2d_gpu --seconds 0.2
  --csv "$out/atrous-conv2d-$device-bfloat16.csv")

if wants build; then
  step build 180 "$python" setup.py build_ext --inplace
fi
# In a source tree that is not installed, fastseg.kernels lies beside the package.
if ! "$python" -c 'import os, fastseg.kernels as k
raise SystemExit(not os.path.samefile(k.__path__[0], "kernels"))' 2>/dev/null; then
  linked=fastseg/kernels
  ln -sfn ../kernels "$linked"
fi

if wants tests; then
  begin tests 150 "$python" -m pytest -q -m gpu "${conv_tests[@]/#/--ignore=}"
fi
if wants sanitize; then
  for tool in memcheck racecheck; do
    begin "$tool" 150 "${sanitize[@]}" --tool "$tool" "$python" -m benchmarks.sanitize_shapes \
      pool dense_crf
  done
fi
if wants conv; then
  for file in "${conv_tests[@]}"; do
    begin "$(basename "$file" .py)" 220 "$python" -m pytest -q "$file"
  done
  # No racecheck: what is shared within a program is Triton's business.
  begin memcheck-conv 220 "${sanitize[@]}" --tool memcheck "$python" -m benchmarks.sanitize_shapes \
    atrous_conv2d
fi
finish

if wants conv; then
  step conv 300 "${conv[@]}" --compile-seconds 100
  grep -v '^ ' "$out/conv.log" | cut -c1-200 | tail -n 80
fi
if wants pooling; then
  for dtype in bfloat16 float32; do
    step "pooling-$dtype" 120 "$python" -m benchmarks.pooling --device cuda --dtype "$dtype" \
      --seconds 0.2 --csv "$out/pooling-$device-$dtype.csv"
    tail -n 30 "$out/pooling-$dtype.log"
  done
fi
if wants dense-crf; then
  step dense-crf 100 "$python" -m benchmarks.dense_crf --device cuda --no-memory --seconds 0.3 \
    --csv "$out/dense-crf-$device.csv"
  tail -n 40 "$out/dense-crf.log"
fi
if wants tests-cpu; then
  step tests-cpu 180 "$python" -m pytest -q -m "not gpu"
fi
if wants models; then
  step models 240 "$python" -m benchmarks.optimize --device cuda --dtype bfloat16 --model SegNet \
    --own --seconds 1 --csv "$out/optimize-$device-bfloat16.csv"
  tail -n 20 "$out/models.log"
fi
if wants autotune; then
  step autotune 520 "${conv[@]/bfloat16.csv/bfloat16-tuned.csv}" --autotune --compile-seconds 0
  grep -v '^  [a-z]' "$out/autotune.log" | cut -c1-200 | tail -n 100
fi

printf '\n%s on %s\n%s\n' "$(git rev-parse --short HEAD 2>/dev/null)" "$device" "$table"
exit $failed
