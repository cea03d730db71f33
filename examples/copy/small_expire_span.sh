#!/usr/bin/env bash
# Expire-Span on a small copy task, which one core learns in some minutes, then its errors on valid and test.
#     bash examples/copy/small_expire_span.sh DATA_BIN SAVE_DIR [OPTIONS OF fairseq-train]
set -euo pipefail

data=${1:?DATA_BIN is missing}
save_dir=${2:?SAVE_DIR is missing}
shift 2

fairseq-train "$data" --user-dir fairseq_expire --cpu \
    --task memory_caching_tagging --tokens-per-sample 64 --batch-size 16 \
    --arch expire_span_lm --decoder-layers 3 --decoder-embed-dim 64 --decoder-ffn-embed-dim 256 \
    --decoder-attention-heads 4 --decoder-normalize-before --dropout 0 \
    --max-span 512 --span-ramp 32 --span-init 200 \
    --criterion expire_span_loss --expire-loss-weight 1e-5 \
    --optimizer adam --lr 0.001 --lr-scheduler polynomial_decay --warmup-updates 100 --total-num-update 3000 \
    --clip-norm 0.5 --max-update 3000 --best-checkpoint-metric answer_error \
    --save-dir "$save_dir" --no-epoch-checkpoints --save-interval-updates 500 --keep-interval-updates 1 \
    --log-format json --log-interval 100 "$@"

for split in valid test; do
    fairseq-validate "$data" --user-dir fairseq_expire --cpu --task memory_caching_tagging --batch-size 16 \
        --path "$save_dir/checkpoint_last.pt" --valid-subset "$split" --log-format json
done
