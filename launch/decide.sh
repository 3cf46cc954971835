#!/usr/bin/env bash
# From pruned variants to a decision, all from the command line: a dense model is fine-tuned on film reviews and pruned
# three ways without training; each variant passes a gate or not, two are compared on a prompt mix, the better one is
# promoted, the one that fails its gate is refused, and at last the first is rolled back to. A report tells it all.
#
#   launch/decide.sh [DIR]      results go to DIR (default: runs/decide)
#
# DECIDE_STEPS      training steps of the dense model (default: 200, of the stand-in 60)
# DECIDE_STAND_IN   yes: a tiny model and made-up reviews instead of the assets (launch/stand_in.py), to see it work in
#                   a minute; its figures say nothing
#
# Interrupted? Run it again: what is done is kept.
set -euo pipefail
case "${1:-}" in -h | --help) sed '1d; /^[^#]/,$d; s/^# \{0,1\}//' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-runs/decide}"
mix=reviews
train=()
if [ "${DECIDE_STAND_IN:-}" = yes ]; then
    export PAT_ASSETS="$out/assets"
    mix="$PAT_ASSETS/mix.jsonl"
    train=(optim.lr=2e-3 optim.head_lr=2e-3)
fi
steps="${DECIDE_STEPS:-$([ "${DECIDE_STAND_IN:-}" = yes ] && echo 60 || echo 200)}"
assets="${PAT_ASSETS:-assets}"
began=$SECONDS

stage() { printf '\n\033[1m[%d:%02d] %s\033[0m\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }

stage "1/8 set-up and assets: a pretrained encoder and rated sentences from film reviews"
. launch/setup.sh
if [ "${DECIDE_STAND_IN:-}" = yes ]; then
    mkdir -p "$assets"
    [ -e "$mix" ] || python launch/stand_in.py
else
    python launch/assets.py reviews
fi
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
    show pat train recipe=reviews_dense "run.dir=$out/run" engine.world_size=1 "train.num_steps=$steps" "${train[@]}"
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
    show pat profile "$out/dense" "$out/narrow" "$out/sparse" --mix "$mix" --requests 10 --batch-sizes 1 \
        --json "$out/profile.json"

stage "5/8 may they go into production? at most three points of accuracy less than the dense model"
cat >"$out/envelope.yaml" <<'YAML'
accuracy: {drop: 0.03}   # at most this much below the baseline
passed: {drop: 0.1}      # on the prompt mix
YAML
for variant in sparse narrow broken; do
    [ -e "$out/$variant.gate.json" ] ||
        show pat gate "$out/$variant" --against "$out/dense" recipe=reviews_dense --envelope "$out/envelope.yaml" --mix "$mix" \
            --json "$out/$variant.gate.json" || [ $? = 5 ] # outside of the envelope: said, and no error of this script
done

stage "6/8 the two that passed, side by side on the prompt mix"
show pat compare "$out/narrow" "$out/sparse" --mix "$mix" --json "$out/compare.json"
# The names of the two, the one that more prompts pass last; on a tie that is the narrow one, which is smaller.
read -r first better < <(python - "$out/compare.json" <<'PY'
import json, sys
outcomes = json.load(open(sys.argv[1]))["outcomes"]
gain = next(o["overall"]["found"]["difference"] for o in outcomes if o["name"] == "passed")  # sparse - narrow
print(*("narrow", "sparse") if gain > 0 else ("sparse", "narrow"))
PY
)
echo "better on the prompt mix: $better"

stage "7/8 the registry: the first goes into production, then the better one; the broken one is refused"
add() { # NAME MORE...
    show pat registry add reviews "$out/$1" --gate "$out/$1.gate.json" "${@:2}" "${registry[@]}"
}
profiled=(--profile "$out/profile.json")
add "$first" "${profiled[@]}"
show pat registry promote reviews 1 --as champion --reason "the first variant inside of the envelope" "${registry[@]}"
add "$better" "${profiled[@]}"
show pat registry promote reviews 2 --as champion --reason "better on the prompt mix" "${registry[@]}"
add broken
code=0
show pat registry promote reviews 3 --as champion --reason "smaller" "${registry[@]}" || code=$?
if [ "$code" != 4 ]; then # 4: refused, for its gate was not passed
    echo "the gate did not hold: exit code $code" >&2
    exit 1
fi
echo "refused, as it should be: exit code $code"
show pat registry diff reviews 1 2 "${registry[@]}"
show pat registry rollback reviews --as champion --reason "complaints about short texts" "${registry[@]}"
show pat registry verify reviews champion "${registry[@]}"
show pat registry show reviews "${registry[@]}"

stage "8/8 a report that a manager can read: of what serves now, with its gate and profile, and beside the other"
show pat report reviews/champion "$out/compare.json" --out "$out/report.html" --markdown "$out/report.md" "${registry[@]}"

printf '\nIn all: %d min %d s. Open %s/report.html\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$out"
