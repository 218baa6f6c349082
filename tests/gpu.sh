#!/usr/bin/env bash
# What only a machine with a GPU can show, in stages; a failing stage does not stop the later ones, but
# build and smoke do. Logs, junit files and the benchmark's records go to $OUT; arguments are handed to
# conformance's pytest, which takes as many processes as there are cores where pytest-xdist is installed.
#
#   tests/gpu.sh                              everything
#   STAGES="smoke primitives" tests/gpu.sh    some of the stages
#   OUT=folder                                default: build/gpu
#   FASTOPS_BUILT=1                           it is built already
#   TOOLS="memcheck racecheck"                of compute-sanitizer, instead of all four
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-build/gpu}
mkdir -p "$out"
summary=()
failed=0

stage() { # name, seconds, command...: runs it, keeps its log and how it ended
  local name=$1 limit=$2 begin=$SECONDS rc=0
  shift 2
  timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1 || rc=$?
  summary+=("$name: rc $rc, $((SECONDS - begin)) s; $(tail -n 1 "$out/$name.log")")
  [ $rc -eq 0 ] && return
  failed=1
  tail -n 20 "$out/$name.log"
  return 1
}
tests() { # name, seconds, arguments of pytest...
  local name=$1 limit=$2
  shift 2
  stage "$name" "$limit" "$python" -m pytest --junitxml "$out/$name.xml" "$@"
}
finish() {
  printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
  exit $failed
}

workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n "${WORKERS:-auto}")
big=--deselect=tests/test_large_tensors.py # one process has the memory

for name in ${STAGES:-build smoke primitives conformance large sanitizer benchmark profile}; do
  case $name in
    build)
      [ "${FASTOPS_BUILT:-}" = 1 ] && continue
      stage build 3600 "$python" setup.py -q build_ext --inplace || finish
      ;;
    smoke)
      stage smoke 60 "$python" -m tests.smoke || finish
      FASTOPS_BACKEND=triton stage triton 120 "$python" -m tests.smoke
      ;;
    primitives) tests primitives 600 -m gpu tests/test_gpu.py tests/test_sm90.py ;;
    conformance) tests conformance 600 -m gpu "${workers[@]}" "$big" "$@" ;;
    large) tests large 300 -m gpu tests/test_large_tensors.py ;;
    sanitizer)
      # The caching allocator would hide what is written past a tensor's end.
      for tool in ${TOOLS:-memcheck racecheck synccheck initcheck}; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$tool" 120 compute-sanitizer --tool "$tool" \
          --error-exitcode 1 --print-limit 20 "$python" -m tests.smoke
      done
      ;;
    benchmark)
      stage bench 560 "$python" -m bench --suite all --minutes 8 --out "$out/bench"
      ;;
    profile) # the rows that lag, by ncu: its log
      stage ncu 300 "$python" -m bench.lagging "$out/bench/layers.jsonl"
      ;;
    *) echo "no stage $name" && exit 2 ;;
  esac
done
finish
