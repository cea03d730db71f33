"""Models built in this process as the command line builds them."""

import commands
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import build_model


class Task:
    """The part of a task that a model is built with."""

    level = None
    label_dictionary = None

    def __init__(self, symbols):
        self.source_dictionary = self.target_dictionary = Dictionary()
        for number in range(symbols - 4):
            self.source_dictionary.add_symbol(f"w{number}")


def build(*given, arch="expire_span_lm", symbols=100, with_cfg=False):
    """Builds a model from options of the command line.

    Returns:
        the model; with ``with_cfg`` a pair of it and its options.
    """
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(
        parser, ["data", "--user-dir", str(commands.USER_DIR), "--task", "memory_caching_lm", "--arch", arch, *given]
    )
    cfg = convert_namespace_to_omegaconf(args)
    model = build_model(cfg.model, Task(symbols))
    return (model, cfg.model) if with_cfg else model
