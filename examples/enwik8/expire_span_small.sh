#!/usr/bin/env bash
# A small Expire-Span model on enwik8, 8 layers, for one GPU; then its score on valid and test.
#     bash examples/enwik8/expire_span_small.sh DATA_BIN SAVE_DIR [OPTIONS OF fairseq-train]
set -euo pipefail

data=${1:?DATA_BIN is missing}
save_dir=${2:?SAVE_DIR is missing}
shift 2

# 64 rows, shared by GPUS GPUs.
gpus=${GPUS:-1}
((64 % gpus == 0)) || { echo "GPUS: expected a divisor of 64, got $gpus" >&2; exit 2; }

fairseq-train "$data" --user-dir fairseq_expire \
    --task memory_caching_lm --tokens-per-sample 256 --batch-size $((64 / gpus)) \
    --arch expire_span_lm --decoder-layers 8 --decoder-embed-dim 256 --decoder-ffn-embed-dim 1024 \
    --decoder-attention-heads 4 --dropout 0 \
    --position-range 256 --max-span 4096 --span-ramp 64 --span-init 409.6 --span-input-scale 64 \
    --criterion expire_span_loss --expire-loss-weight 1e-6 \
    --optimizer adam --lr 0.0003 --lr-scheduler fixed --warmup-updates 8000 --clip-norm 0.3 \
    --max-update 100000 \
    --save-dir "$save_dir" --no-epoch-checkpoints --log-format json --log-interval 100 "$@"

for split in valid test; do
    fairseq-eval-lm "$data" --user-dir fairseq_expire --task memory_caching_lm \
        --path "$save_dir/checkpoint_best.pt" --gen-subset "$split"
done
