"""Options that exclude each other, and names that do not exist."""

from wrong_uses import Use
from wrong_uses.data import removed

UNKNOWN = "error: unrecognized arguments: {}"

USES = [
    Use(
        "span options of another architecture",
        "train",
        "--span-shortening",
        UNKNOWN.format("--span-shortening"),
        arch="adaptive_span_lm",
    ),
    Use("a ramp of a fixed span", "train", "--span-ramp 5", UNKNOWN.format("--span-ramp 5"), arch="transformer_xl_lm"),
    Use(
        "a budget of compressed memories",
        "train",
        "--memory-budget 5",
        "memory_budget 5: the compressive memory always has max_span \\+ compressed_size = .* leave the budget out",
        arch="compressive_transformer_lm",
    ),
    Use("no such architecture", "train", "--arch expire_span", "argument --arch/-a: invalid choice: 'expire_span'"),
    Use(
        "an architecture without memory",
        "train",
        "--arch lstm_lm --criterion cross_entropy --decoder-hidden-size 32",
        "memory_caching_lm reads with a memory, which LSTMLanguageModel does not have: expected one of --arch "
        ".*expire_span_lm",
        arch="lstm_lm",
    ),
    Use(
        "a criterion without its task",
        "train",
        "--task language_modeling --decoder-hidden-size 32",
        "--criterion expire_span_loss needs the memories of .*, which LanguageModelingTask does not keep",
        arch="lstm_lm",
    ),
    Use(
        "training without the task",
        "train",
        "--task language_modeling",
        "ExpireSpanLanguageModel reads with the memories of .*, which LanguageModelingTask does not keep",
    ),
    Use(
        "scoring without the task",
        "eval-lm",
        "--task language_modeling",
        "ExpireSpanLanguageModel reads with the memories of .*, which LanguageModelingTask does not keep",
    ),
    Use(
        "one matrix of two clusters",
        "train",
        "--share-decoder-input-output-embed --adaptive-softmax-cutoff 20",
        "shares one full matrix: .* use --tie-adaptive-weights instead",
    ),
    Use(
        "ties without clusters",
        "train",
        "--tie-adaptive-weights",
        "--tie-adaptive-weights needs --adaptive-input with the cutoffs",
    ),
    Use(
        "lines that are documents without borders",
        "train",
        "--lines-are-documents",
        "--lines-are-documents only works together with --break-memory-at-eos",
    ),
    Use("projections tied alone", "train", "--tie-adaptive-proj", "only works together with --tie-adaptive-weights"),
    *(
        Use(
            f"a metric that nobody logs, {name}",
            "train",
            f"--best-checkpoint-metric {metric} {options}",
            rf"--best-checkpoint-metric {metric}: no validation logs that with --criterion {criterion}; expected one "
            rf"of .*{there}",
            damage,
            arch="expire_span_lm" if criterion == "expire_span_loss" else "transformer_xl_lm",
        )
        for name, metric, options, criterion, there, damage in [
            ("misspelt", "bcp", "", "expire_span_loss", "bpc, .*span_max, span_mean", None),
            ("of training", "gnorm", "--patience 2", "expire_span_loss", "bpc, ", None),
            ("of another criterion", "span_mean", "--criterion cross_entropy", "cross_entropy", "loss, ppl", None),
            ("of bytes", "bpc", "", "expire_span_loss", "expire_loss, loss, ", removed("manifest.json")),
            (
                "of another loss",
                "bpc",
                "--criterion adaptive_loss --adaptive-softmax-cutoff 20 --ddp-backend legacy_ddp",
                "adaptive_loss",
                "loss, ppl",
                None,
            ),
        ]
    ),
    Use(
        "checkpoints written later than their memory",
        "train",
        "--write-checkpoints-asynchronously",
        "--write-checkpoints-asynchronously writes checkpoints in place, .*: leave it out, or give --no-save-memory",
    ),
    Use(
        "checkpoints written with what is not installed",
        "train",
        "--write-checkpoints-asynchronously --no-save-memory",
        "--write-checkpoints-asynchronously needs iopath, which is not installed: pip install iopath, or leave it out",
    ),
    *(
        Use(
            f"nothing to compare for {option}",
            "train",
            f"{option} 2 --disable-validation",
            f"{option} 2 compares validations, and --disable-validation leaves them out: leave out one",
        )
        for option in ("--patience", "--keep-best-checkpoints")
    ),
    Use(
        "no block but the last",
        "train",
        "--skip-remainder-batch --tokens-per-sample 7500",
        "--skip-remainder-batch leaves out the last block of each epoch, and there is only one of 7500 tokens of 8 "
        "rows: lower",
    ),
    Use("context for each sample", "eval-lm", "--context-window 8", "--context-window gives .*: leave the option out"),
    Use("less than no context", "eval-lm", "--context-window -8", "--context-window gives .*: leave the option out"),
    *(
        Use(
            f"another format of data, {name}",
            command,
            f"--dataset-impl {name}",
            f"--dataset-impl {name}: streams are read from fairseq's mmap format alone; leave the option out",
        )
        for name, command in [("raw", "train"), ("lazy", "eval-lm")]
    ),
    Use(
        "no such split to score",
        "eval-lm",
        "--gen-subset tset",
        "no split 'tset' in data: .* found splits: test, train, valid",
    ),
    Use(
        "no such split to validate on",
        "train",
        "--valid-subset dev",
        "no split 'dev' in data: .* found splits: test, train, valid",
    ),
]
