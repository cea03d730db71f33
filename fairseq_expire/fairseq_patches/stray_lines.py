"""A filter for lines of other libraries that a user can do nothing about: only fairseq could change their cause."""

import logging
import re
import warnings

# (beginning of the message, category, module that it is reported for)
WARNINGS = (
    # Hydra, about the way in which fairseq calls it.
    ("hydra.experimental.initialize() is no longer experimental", UserWarning, "hydra.experimental.initialize"),
    ("hydra.experimental.compose() is no longer experimental", UserWarning, "hydra.experimental.compose"),
    ("\nThe version_base parameter is not specified.", UserWarning, "hydra.experimental.initialize"),
    ("\nThe strict flag in the compose API is deprecated.", UserWarning, "hydra.compose"),
    ("In 'config': Usage of deprecated keyword in package header", UserWarning, "hydra.core.default_element"),
    # Hydra reports this one for whatever called fairseq.
    ("\n'config' is validated against ConfigStore schema with the same name.", UserWarning, ""),
    # torch, about fairseq with and without a GPU.
    ("`torch.cuda.amp.autocast(args...)` is deprecated.", FutureWarning, "fairseq.tasks.fairseq_task"),
    ("`torch.cuda.amp.GradScaler(args...)` is deprecated.", FutureWarning, "fairseq.optim.amp_optimizer"),
    ("'pin_memory' argument is set as true but no accelerator is found", UserWarning, "torch.utils.data.dataloader"),
)
# Python, about fairseq's source. pip compiles it during the installation, other installers leave it to the first
# import.
OF_THE_SOURCE = ('"is not" with a literal', "invalid escape sequence")
SOURCE = r".*[\\/]fairseq[\\/]"


def silence() -> None:
    """Leaves out these lines and no others. ``-W`` and filters that a program has set take precedence."""
    for message, category, module in WARNINGS:
        warnings.filterwarnings(
            "ignore", re.escape(message), category, re.escape(module) + ("$" if module else ""), append=True
        )
    for message in OF_THE_SOURCE:
        warnings.filterwarnings("ignore", message, SyntaxWarning, SOURCE, append=True)
    logging.getLogger("fairseq.trainer").addFilter(_is_about_a_parameter)
    # Importing fairseq sets this logger to DEBUG.
    logging.getLogger("hydra.core.utils").setLevel(logging.INFO)


def _is_about_a_parameter(record: logging.LogRecord) -> bool:
    """Returns False for a missing bias: the trainer takes all missing biases for one shared parameter."""
    return re.fullmatch(r"detected shared parameter: \S+\.bias <- \S+\.bias", record.getMessage()) is None
