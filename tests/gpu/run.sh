#!/usr/bin/env bash
# Runs what only a GPU can show: parity of ZeRO stages over NCCL, fp16, FusedAdam, packing with flash-attention, Liger,
# compiled kernels, step time and memory on a model of 0.6 B parameters, the demo on its stand-in, and `pat doctor`.
# Meant to take under ten minutes; not timed on a card yet.
#
#   tests/gpu/run.sh [FILE]      figures go to FILE (default: results/gpu.json), with the card's name
#
# Without a GPU it says so and ends with 0: nothing was checked, and nothing is claimed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. launch/setup.sh
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
python -m tests.gpu.checks "${1:-results/gpu.json}"
