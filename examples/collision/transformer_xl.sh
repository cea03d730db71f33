#!/usr/bin/env bash
# Transformer-XL with 1,024 memories on hard collisions, then its errors on valid and test.
#     bash examples/collision/transformer_xl.sh DATA_BIN SAVE_DIR [OPTIONS OF fairseq-train]
set -euo pipefail

data=${1:?DATA_BIN is missing}
save_dir=${2:?SAVE_DIR is missing}
shift 2

# 512 rows: 64 on each of 8 GPUs. Fewer GPUs (GPUS=1, 2 or 4) read groups of 64 rows in turns.
gpus=${GPUS:-8}
((8 % gpus == 0)) || { echo "GPUS: expected 1, 2, 4 or 8, got $gpus" >&2; exit 2; }

fairseq-train "$data" --user-dir fairseq_expire \
    --task memory_caching_tagging --tokens-per-sample 256 --batch-size 64 --update-freq $((8 / gpus)) --batch-size-valid 16 \
    --arch transformer_xl_lm --decoder-layers 6 --decoder-embed-dim 512 --decoder-ffn-embed-dim 1024 \
    --decoder-attention-heads 4 --decoder-normalize-before --dropout 0.1 \
    --max-span 1024 \
    --criterion expire_span_loss \
    --optimizer adam --lr 0.0001 --lr-scheduler fixed --warmup-updates 1000 --clip-norm 0.1 \
    --max-update 100000 --best-checkpoint-metric error \
    --save-dir "$save_dir" --no-epoch-checkpoints --log-format json --log-interval 100 "$@"

for split in valid test; do
    fairseq-eval-lm "$data" --user-dir fairseq_expire --task memory_caching_tagging \
        --path "$save_dir/checkpoint_best.pt" --gen-subset "$split"
done
