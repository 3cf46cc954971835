#!/usr/bin/env bash
# From pruned variants to a decision, all from the command line: a dense model is fine-tuned on film reviews and pruned
# three ways without training; each variant passes a gate or not, two are compared on a prompt mix, the better one is
# promoted, the one that fails its gate is refused, and at last the first is rolled back to. A report tells it all.
#
#   launch/decide.sh [DIR]      results go to DIR (default: runs/decide)
#
# DECIDE_STEPS    training steps of the dense model (default: 200)
#
# Interrupted? Run it again: what is done is kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-runs/decide}"
steps="${DECIDE_STEPS:-200}"
assets="${PAT_ASSETS:-assets}"
began=$SECONDS

stage() { printf '\n\033[1m[%d:%02d] %s\033[0m\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }

stage "1/8 set-up and assets: a pretrained encoder and rated sentences from film reviews"
. launch/setup.sh
python launch/assets.py reviews
if ! nvidia-smi --list-gpus >/dev/null 2>&1; then
    export DS_ACCELERATOR=cpu
    pat_wait # the op that DeepSpeed's CPU ranks need
fi
export WANDB_MODE="${WANDB_MODE:-offline}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
mkdir -p "$out"
reviews=(--data "$assets/reviews/train.jsonl" --eval "$assets/reviews/eval.jsonl" --max-length 40 --samples 256)
registry=(--dir "$out/registry")

stage "2/8 the dense model, $steps steps"
if [ ! -e "$out/dense/config.json" ]; then
    show pat train recipe=reviews_dense "run.dir=$out/run" engine.world_size=1 "train.num_steps=$steps"
    show pat export "$out/run" --out "$out/dense"
fi

stage "3/8 three variants, pruned without training: half of the weights, half of the neurons, 95 % of the weights by size"
prune() { # NAME, and how much
    [ -e "$out/$1/config.json" ] || show pat prune "$out/dense" "${reviews[@]:0:6}" --out "$out/$1" "${@:2}"
}
prune sparse --sparsity 0.5 "${reviews[@]:6}"
prune narrow --keep ffn=0.5 "${reviews[@]:6}"
prune broken --sparsity 0.95 --method magnitude

stage "4/8 how fast are they? each beside the dense model, in turn"
[ -e "$out/profile.json" ] ||
    show pat profile "$out/dense" "$out/narrow" "$out/sparse" --mix reviews --requests 10 --batch-sizes 1 \
        --json "$out/profile.json"

stage "5/8 may they go into production? at most three points of accuracy less than the dense model"
cat >"$out/envelope.yaml" <<'YAML'
accuracy: {drop: 0.03}   # at most this much below the baseline
passed: {drop: 0.1}      # on the prompt mix
YAML
for variant in sparse narrow broken; do
    [ -e "$out/$variant.gate.json" ] ||
        show pat gate "$out/$variant" --against "$out/dense" recipe=reviews_dense --envelope "$out/envelope.yaml" --mix reviews \
            --json "$out/$variant.gate.json" || [ $? = 5 ] # outside of the envelope: said, and no error of this script
done

stage "6/8 the two that passed, side by side on the prompt mix"
show pat compare "$out/narrow" "$out/sparse" --mix reviews --json "$out/compare.json"

stage "7/8 the registry: the first goes into production, then the better one; the broken one is refused"
add() { # NAME
    show pat registry add reviews "$out/$1" --gate "$out/$1.gate.json" --profile "$out/profile.json" "${registry[@]}"
}
add narrow
show pat registry promote reviews 1 --as champion --reason "the first variant inside of the envelope" "${registry[@]}"
add sparse
show pat registry promote reviews 2 --as champion --reason "better on the prompt mix" "${registry[@]}"
add broken
if show pat registry promote reviews 3 --as champion --reason "smaller" "${registry[@]}"; then
    echo "the gate did not hold" >&2
    exit 1
fi
show pat registry diff reviews 1 2 "${registry[@]}"
show pat registry rollback reviews --as champion --reason "complaints about short texts" "${registry[@]}"
show pat registry verify reviews champion "${registry[@]}"
show pat registry show reviews "${registry[@]}"

stage "8/8 a report that a manager can read"
show pat report "$out/compare.json" "$out/sparse" "$out/sparse.gate.json" "$out/profile.json" --out "$out/report.html"

printf '\nIn all: %d min %d s. Open %s/report.html\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$out"
