"""Options with a value of a wrong type or out of range, one at a time."""

from wrong_uses import Use

INTEGER = "fairseq-train: error: argument {}: invalid int value: '{}'"
SHARE = r"{0} is a share: expected 0 <= {0} < 1, got {1}"
CUTOFFS = "needs rising word ranks like 20000,60000, at least 4 .* and at most the 90 symbols of the dictionary; got {}"
FACTOR = (
    "how many times narrower each further cluster is: expected at least 1, .* width of at least 1 of the 32 .* got {}"
)
STEPS = "in steps: expected at least 1, got {}"
ROWS = "{} multiplies the number of rows: expected at least 1, got {}"
BATCH = r"{} rows x 32 tokens \({} x --tokens-per-sample\) exceeds {}: lower"
TOO_LARGE = r"weights of this model take [\d,]{{15,}} bytes, and this machine has [\d,]+ bytes of memory: lower {}"
HUGE = 10**12

# Option and value, and the sentence; a table for each architecture that has options of its own.
TRAINING = {
    "--max-span many": INTEGER.format("--max-span", "many"),
    "--span-ramp 1.5": INTEGER.format("--span-ramp", "1.5"),
    "--tokens-per-sample 1e3": INTEGER.format("--tokens-per-sample", "1e3"),
    "--max-span 0": "max_span is the longest span " + STEPS.format(0),
    f"--max-span {HUGE}": f"max_span is the longest span in steps: expected at most 16777216, as far as .*, got {HUGE}",
    "--span-ramp -1": "ramp is the length of the soft edge " + STEPS.format(-1),
    "--span-init nan": "expected more than 0 and less than max_span = 256, got nan",
    "--span-init 0": "span_init .* expected more than 0 .*got 0.0",
    "--span-init 256": "expected more than 0 and less than max_span = 256, got 256",
    "--span-input-scale nan": "input_scale .* expected more than 0 and less than infinity, got nan",
    "--span-limit 0": "span_limit is a number of steps: expected at least 1 or none, got 0",
    "--memory-budget 0": "memory_budget is how many memories .* expected a whole number from 1 on or none, got 0",
    "--position-range 0": "position_range must be at least 1, got 0",
    f"--position-range {HUGE}": TOO_LARGE.format("--position-range"),
    "--expire-loss-weight -1": "--expire-loss-weight is a price: expected a number from 0 on, got -1",
    "--expire-loss-weight nan": "--expire-loss-weight is a price: expected a number from 0 on, got nan",
    "--expire-loss-weight inf": "--expire-loss-weight is a price: expected a number from 0 on, got inf",
    "--dropout 1.5": SHARE.format("dropout", 1.5),
    "--attention-dropout nan": SHARE.format("attention_dropout", "nan"),
    "--adaptive-softmax-cutoff 20 --adaptive-softmax-dropout nan": SHARE.format("adaptive_softmax_dropout", "nan"),
    "--decoder-layers 0": "num_layers must be at least 1, got 0",
    f"--decoder-layers {HUGE}": TOO_LARGE.format("--decoder-layers"),
    "--decoder-embed-dim -32": "embed_dim must be at least 1, got -32",
    f"--decoder-ffn-embed-dim {HUGE}": TOO_LARGE.format("--decoder-layers, .*--decoder-ffn-embed-dim"),
    "--decoder-attention-heads 3": "num_heads must divide embed_dim, got 3 heads and width 32",
    "--adaptive-softmax-cutoff 50,20": "--adaptive-softmax-cutoff " + CUTOFFS.format("50,20"),
    "--adaptive-softmax-cutoff 20,x": "--adaptive-softmax-cutoff " + CUTOFFS.format("20,x"),
    "--adaptive-input --adaptive-input-cutoff 20,5000": "--adaptive-input-cutoff " + CUTOFFS.format("20,5000"),
    "--adaptive-input --adaptive-input-cutoff 20 --adaptive-input-factor 99": "--adaptive-input-factor is "
    + FACTOR.format(99),
    "--tokens-per-sample 0": "--tokens-per-sample .* expected at least 1, got 0",
    f"--tokens-per-sample {HUGE}": TOO_LARGE.format("--position-range .*--tokens-per-sample"),
    "--batch-size 0": ROWS.format(r"--batch-size \(or --batch-size-valid\)", 0),
    "--batch-size 70000": "60000 tokens, fewer than the 70000 rows asked for .*: ask for fewer",
    "--batch-size-valid 0": ROWS.format(r"--batch-size \(or --batch-size-valid\)", 0),
    "--batch-size-valid 5000": "4001 tokens, fewer than the 5000 rows asked for",
    "--max-tokens 100": r"8 rows x 32 tokens .* exceeds --max-tokens 100: lower one or raise the other",
    "--max-tokens-valid 100": BATCH.format(8, "--batch-size", "--max-tokens-valid 100"),
    "--max-tokens 300 --batch-size-valid 10": BATCH.format(10, "--batch-size-valid", "--max-tokens 300"),
    "--max-tokens-valid 40 --batch-size-valid 3": BATCH.format(3, "--batch-size-valid", "--max-tokens-valid 40"),
    "--update-freq 0": ROWS.format("--update-freq", 0),
    "--num-workers -1": "num_workers option should be non-negative",
}
ADAPTIVE_SPAN = {
    "--span-init 65": "expected 0 to max_span = 64, got 65",
    "--span-init nan": "expected 0 to max_span = 64, got nan",
}
COMPRESSIVE = {
    "--compressed-size 0": "compressed_size is the number of compressed memories: expected at least 1, got 0",
    f"--compressed-size {HUGE}": r"max_span \+ compressed_size x rate .*at most 16777216, .*, got 4000000000048",
    "--compression-rate 0": "rate is how many states .*: expected at least 2, got 0",
    "--compression-rate 100": "expected at least the 100 that are compressed into one, got 48",
    "--compression min": r"argument --compression: invalid choice: 'min' \(choose from 'mean', 'max'\)",
}
SCORING = {
    "--batch-size -1": ROWS.format("--batch-size .*", -1),
    "--max-tokens -3": "--max-tokens is the number of tokens read at once: expected at least 1, got -3",
    "--num-shards 2 --shard-id 5": "--shard-id counts from 0: expected less than the 2 of --num-shards, got 5",
    "--model-overrides {'position_range':64}": "positions for 32 steps, .* asks for 64: .* give --position-range 32",
    "--model-overrides {'decoder_layers':3}": r"weight model.stack.layers.2\S+ of shape .* checkpoint has none: give",
}

USES = [
    *(Use(f"train {given}", "train", given, message) for given, message in TRAINING.items()),
    *(
        Use(f"adaptive-span {given}", "train", given, message, arch="adaptive_span_lm")
        for given, message in ADAPTIVE_SPAN.items()
    ),
    *(
        Use(f"compressive {given}", "train", given, message, arch="compressive_transformer_lm")
        for given, message in COMPRESSIVE.items()
    ),
    Use(
        "fixed-span --max-span -1",
        "train",
        "--max-span -1",
        "number of steps remembered: expected at least 1, got -1",
        arch="transformer_xl_lm",
    ),
    *(Use(f"eval-lm {given}", "eval-lm", given, message) for given, message in SCORING.items()),
]
