#!/usr/bin/env bash
# Makes the tiny policies that ship with the package, from nothing. Every step resumes; run it again after an interruption.
#   bash experiments/tiny_policy.sh runs
set -euo pipefail
runs=${1:?usage: tiny_policy.sh RUNS_DIRECTORY}

pixelis train --config=configs/tiny_base.py --workdir="$runs/tiny_base"
pixelis train --config=configs/tiny_sft.py --workdir="$runs/tiny_sft" --config.init_from="$runs/tiny_base"

for name in tiny_base tiny_sft; do
  mkdir -p "pixelis_jax/weights/$name"
  cp "$runs/$name/model/"* "pixelis_jax/weights/$name/"
done
pixelis eval --config=configs/eval_scenes.py --model=tiny_sft --workdir="$runs/eval_tiny_sft"
