#!/usr/bin/env bash
# Ten thousand updates more for the model of expire_span.sh, at a tenth of its learning rate, then the score.
# CHECKPOINT is the checkpoint_last.pt that expire_span.sh ended with, in another folder than SAVE_DIR.
#     bash examples/enwik8/expire_span_finetune.sh DATA_BIN SAVE_DIR CHECKPOINT [OPTIONS OF fairseq-train]
set -euo pipefail

data=${1:?DATA_BIN is missing}
save_dir=${2:?SAVE_DIR is missing}
checkpoint=${3:?CHECKPOINT is missing}
shift 3

# 512 rows: 64 on each of 8 GPUs. Fewer GPUs (GPUS=1, 2 or 4) read groups of 64 rows in turns.
gpus=${GPUS:-8}
((8 % gpus == 0)) || { echo "GPUS: expected 1, 2, 4 or 8, got $gpus" >&2; exit 2; }

# The learning rate is the only setting that changes: updates, moments and place in the text go on from CHECKPOINT. The best
# score of the run before is forgotten (--reset-meters), or a first checkpoint_best.pt would have to beat it.
fairseq-train "$data" --user-dir fairseq_expire \
    --task memory_caching_lm --tokens-per-sample 512 --batch-size 64 --update-freq $((8 / gpus)) --batch-size-valid 16 \
    --arch expire_span_lm --decoder-layers 12 --decoder-embed-dim 512 --decoder-ffn-embed-dim 2048 \
    --decoder-attention-heads 8 --dropout 0 --attention-dropout 0.3 --activation-dropout 0.3 \
    --position-range 512 --max-span 16384 --span-ramp 128 --span-init 1638.4 --span-shortening \
    --criterion expire_span_loss --expire-loss-weight 1e-6 \
    --optimizer adam --lr 0.00007 --lr-scheduler fixed --clip-norm 0.3 \
    --continue-once "$checkpoint" --reset-meters --max-update 110000 \
    --save-dir "$save_dir" --no-epoch-checkpoints --log-format json --log-interval 100 "$@"

for split in valid test; do
    fairseq-eval-lm "$data" --user-dir fairseq_expire --task memory_caching_lm \
        --path "$save_dir/checkpoint_best.pt" --gen-subset "$split"
done
