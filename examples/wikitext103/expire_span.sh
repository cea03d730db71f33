#!/usr/bin/env bash
# Expire-Span on WikiText-103, 8 layers, 300,000 updates, then its score on valid and test.
#     bash examples/wikitext103/expire_span.sh DATA_BIN SAVE_DIR [OPTIONS OF fairseq-train]
set -euo pipefail

data=${1:?DATA_BIN is missing}
save_dir=${2:?SAVE_DIR is missing}
shift 2

# 64 rows, shared by GPUS GPUs.
gpus=${GPUS:-8}
((64 % gpus == 0)) || { echo "GPUS: expected a divisor of 64, got $gpus" >&2; exit 2; }

# A block without rare words gives their clusters no gradient; PyTorch's own wrapper wants one from all.
fairseq-train "$data" --user-dir fairseq_expire \
    --task memory_caching_lm --tokens-per-sample 256 --batch-size $((64 / gpus)) \
    --arch expire_span_lm --decoder-layers 8 --decoder-embed-dim 1024 --decoder-ffn-embed-dim 4096 \
    --decoder-attention-heads 8 --dropout 0 --decoder-dropout-in 0.2 --decoder-dropout-out 0.2 --attention-dropout 0.3 \
    --activation-dropout 0.3 \
    --adaptive-input --adaptive-input-cutoff 20000,40000,200000 --adaptive-softmax-cutoff 20000,40000,200000 \
    --tie-adaptive-weights --tie-adaptive-proj \
    --position-range 256 --max-span 8192 --span-ramp 128 --span-init 819.2 \
    --criterion expire_span_loss --expire-loss-weight 1e-6 \
    --optimizer adam --lr 0.00025 --lr-scheduler cosine --warmup-updates 8000 --clip-norm 0.1 \
    --max-update 300000 --ddp-backend legacy_ddp \
    --save-dir "$save_dir" --no-epoch-checkpoints --log-format json --log-interval 100 "$@"

for split in valid test; do
    fairseq-eval-lm "$data" --user-dir fairseq_expire --task memory_caching_lm \
        --path "$save_dir/checkpoint_best.pt" --gen-subset "$split"
done
