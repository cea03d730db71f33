"""The report at the end of the demo."""

import sys
from pathlib import Path

import forgetting

ROWS = {
    "xz_alone": "xz -9e, the test text alone",
    "xz_after_training_text": "xz -9e, with the training text in front",
    "order_2": "order-2 context model (Witten-Bell)",
    "ours": "expire_span_lm_tiny (ours)",
}


def table(bits_per_byte):
    """Returns an aligned line for each model; `bits_per_byte` has the keys of ROWS."""
    width = max(len(name) for name in ROWS.values())
    lines = [f"{'model':{width}} | test bits per byte", f"{'-' * width}-|-------------------"]
    return "\n".join(lines + [f"{name:{width}} | {bits_per_byte[key]:18.3f}" for key, name in ROWS.items()])


def report(baselines, score, max_span, forgot, data, checkpoint):
    """Returns all figures of the demo, the place of its model, and commands to use it.

    Args:
        baselines, score, forgot: results of the steps of the demo.
        max_span: longest span of the model.
        data: path of the data-bin.
        checkpoint: path of the model.
    """
    results = {key: forgetting.Result(**values) for key, values in forgot.items()}
    return "\n".join(
        [
            table({**baselines, "ours": score["bits_per_byte"]}),
            "",
            f"The model remembers {score['memory_size']:.0f} of up to {max_span} steps on average.",
            f"It is in {checkpoint}",
            "",
            forgetting.report(results),
            "",
            next_steps(data, checkpoint),
        ]
    )


def next_steps(data, checkpoint):
    """Returns the commands to type next."""
    tools, mine = Path(sys.executable).parent, data.parent / "mine"
    return f"""Score a text of your own with it:
  {sys.executable} data_prep/text.py --level bytes --dict {data}/dict.txt --dest {mine} --test FILE
  {tools}/fairseq-eval-lm {mine} --path {checkpoint} \\
      --user-dir fairseq_expire --task memory_caching_lm --gen-subset test --cpu
Train on your own text:
  make demo TEXT=folder-or-file"""
