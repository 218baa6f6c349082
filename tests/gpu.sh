#!/usr/bin/env bash
# What only a machine with a GPU can show: the tests marked gpu, and then, small cases of every op, once
# more under each tool of compute-sanitizer. Arguments are handed to the first pytest.
#
#   tests/gpu.sh                 everything
#   tests/gpu.sh -k max_pool     some of the tests
#   TOOLS=memcheck tests/gpu.sh  one of the tools (default: memcheck initcheck racecheck synccheck)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU that torch can use"'
"$python" setup.py -q build_ext --inplace
"$python" -m pytest -m gpu "$@"

# The caching allocator would hide what is written past a tensor's end.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in ${TOOLS:-memcheck initcheck racecheck synccheck}; do
  echo "compute-sanitizer --tool $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 20 \
    "$python" -m pytest -x -m gpu tests/test_against_torch.py tests/test_pool.py \
    -k "test_values_and_gradients or duplicates or gather_and_scatter or odd_addresses"
done
