#!/usr/bin/env bash
# Sets up what is missing and runs the tests.
#
#   tests/run.sh                    the quick set: everything but tests marked `slow`
#   tests/run.sh --slow             everything
#   tests/run.sh tests/unit -k name other arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

which=(-m "not slow")
if [ "${1:-}" = --slow ]; then
    which=()
    shift
fi

. launch/setup.sh
pat_wait

# The tests are about the CPU path and make all they need; no network, no logger, a core for each of two ranks.
export TORCH_EXTENSIONS_DIR="$PAT_OPS" DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
unset PYTHONDONTWRITEBYTECODE  # hundreds of processes import pat
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export HF_HOME="$scratch/hf" WANDB_DIR="$scratch"

# Three more at once than there are cores keep them busy: ranks wait for each other, and jobs for Slurm. What takes longest
# comes first, and what forks processes before others have left threads in them.
cores="$(env -u OMP_NUM_THREADS nproc)"  # it would count threads
[ $# -gt 0 ] || set -- --numprocesses="$((cores < 6 ? cores + 3 : 8))" --dist=loadfile --no-loadscope-reorder \
    tests/cluster tests/unit/house/test_docker.py tests/unit/house/test_mutants.py tests/distributed tests/browser \
    tests/recipes tests/unit

status=0
python -m pytest "${which[@]}" --durations=15 --basetemp="$scratch/pytest" "$@" || status=$?
[ "$status" = 0 ] && echo "tests: all passed" || echo "tests: some failed, see above" >&2
exit "$status"
