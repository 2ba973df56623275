#!/usr/bin/env bash
# Makes the tiny policies that ship with the package, from nothing. Every step resumes; run it again after an interruption.
#   bash experiments/tiny_policy.sh runs
set -euo pipefail
runs=${1:?usage: tiny_policy.sh RUNS_DIRECTORY}
export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

pixelis train --config=configs/tiny_look.py --workdir="$runs/tiny_look"
pixelis train --config=configs/tiny_watch.py --workdir="$runs/tiny_watch" --config.init_from="$runs/tiny_look"
pixelis train --config=configs/tiny_copy.py --workdir="$runs/tiny_copy" --config.init_from="$runs/tiny_watch"
pixelis train --config=configs/tiny_read.py --workdir="$runs/tiny_read" --config.init_from="$runs/tiny_copy"
pixelis train --config=configs/tiny_crops.py --workdir="$runs/tiny_crops" --config.init_from="$runs/tiny_read"
pixelis train --config=configs/tiny_recall.py --workdir="$runs/tiny_recall" --config.init_from="$runs/tiny_crops"
pixelis train --config=configs/tiny_base.py --workdir="$runs/tiny_base" --config.init_from="$runs/tiny_recall"
pixelis train --config=configs/tiny_sft.py --workdir="$runs/tiny_sft" --config.init_from="$runs/tiny_base"
pixelis train --config=configs/tiny_pages.py --workdir="$runs/tiny_pages" --config.init_from="$runs/tiny_sft"
pixelis train --config=configs/tiny_lines.py --workdir="$runs/tiny_lines" --config.init_from="$runs/tiny_pages"
pixelis train --config=configs/tiny_sft_early.py --workdir="$runs/tiny_sft_early" --config.init_from="$runs/tiny_base"

ship() { # RUN NAME
  rm -rf "pixelis_jax/weights/$2"
  pixelis convert "$runs/$1" "pixelis_jax/weights/$2" --to=hf --dtype=bfloat16
}
ship tiny_base tiny_base
ship tiny_lines tiny_sft
ship tiny_sft_early tiny_sft_early
pixelis eval --config=configs/eval_scenes.py --model=tiny_sft --workdir="$runs/eval_tiny_sft"
