#!/usr/bin/env bash
# From a fresh clone to a pruned, exported model: fine-tunes a pretrained encoder on real film reviews, once dense and
# once while 90 % of its feed-forward weights are pruned, exports the second as a Hugging Face folder and compares the two.
#
#   launch/demo.sh [DIR [key=value ...]]      results go to DIR (default: runs/demo), keys to the pruned model's training
#
# DEMO_STEPS      training steps of each model (default: 200, of the stand-in 60)
# DEMO_STAND_IN   yes: a tiny model and made-up reviews instead of the assets (launch/stand_in.py), to see it work in a
#                 minute; its figures say nothing
#
# Interrupted? Run it again: what is done is kept, and a training goes on from its last checkpoint.
set -euo pipefail
case "${1:-}" in -h | --help) sed '1d; /^[^#]/,$d; s/^# \{0,1\}//' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-runs/demo}"
keys=("train.num_steps=${DEMO_STEPS:-200}")
if [ "${DEMO_STAND_IN:-}" = yes ]; then
    export PAT_ASSETS="$out/assets"
    keys=("train.num_steps=${DEMO_STEPS:-60}" optim.lr=2e-3 optim.head_lr=2e-3)
fi
began=$SECONDS

stage() { printf '\n\033[1m[%d:%02d] %s\033[0m\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$*"; }

stage "1/6 set-up: a virtual environment with pat, torch, DeepSpeed and transformers"
. launch/setup.sh

stage "2/6 assets: a pretrained encoder (22.7 M parameters) and 10,600 rated sentences from film reviews"
if [ "${DEMO_STAND_IN:-}" = yes ]; then
    mkdir -p "$PAT_ASSETS"
    [ -e "$PAT_ASSETS/mix.jsonl" ] || python launch/stand_in.py
else
    python launch/assets.py reviews
fi

# One rank per GPU, at most two; without a GPU two ranks share the CPU.
gpus="$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)"
ranks=2
if [ "$gpus" = 1 ]; then ranks=1; fi
if [ "$gpus" = 0 ]; then
    export DS_ACCELERATOR=cpu
    pat_wait # the op that DeepSpeed's CPU ranks need
fi
export WANDB_MODE="${WANDB_MODE:-offline}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" # nothing here needs the network any more
train() { pat train "$@" "engine.world_size=$ranks" "${keys[@]}"; }

stage "3/6 the dense model: fine-tuned by $ranks rank(s) under ZeRO 2 ($([ "$gpus" = 0 ] && echo CPU || echo GPU))"
train recipe=reviews_dense "run.dir=$out/dense"

stage "4/6 the pruned model: the same steps; 90 % of the feed-forward weights go in four cuts, and the rest heals"
train recipe=reviews "run.dir=$out/pruned" "${@:2}"

stage "5/6 export: a stock Hugging Face folder, reloaded and proved equal to what was trained"
for run in dense pruned; do
    rm -rf "$out/export-$run"
    pat export "$out/$run" --out "$out/export-$run"
done

stage "6/6 the comparison"
python launch/demo_table.py "$out"

cat <<MESSAGE

In all: $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s. Where things are:
  $out/export-pruned    the pruned model; AutoModelForSequenceClassification.from_pretrained reads it
  $out/pruned           the run: config.yaml, metrics.jsonl, summary.json, checkpoints/, logs/
  $out/table.json       the figures above

What to try next (source ${PAT_VENV:-.venv}/bin/activate first):
  pat train recipe=reviews pruners.weights.budget.sparsity=0.5           another sparsity
  pat train recipe=reviews pruners.weights.criterion.name=wanda          another criterion
  pat train recipe=reviews engine=zero3                                  parameters sharded as well
  pat train recipe=reviews_narrow                                        a physically smaller model: half of the neurons
  pat train --help                                                       everything that can be set
MESSAGE
