"""Lines of other libraries that say nothing to a user of this package, since only fairseq could change what they are about."""

import logging
import re
import warnings

# (beginning of the message, category, module that it is reported of)
WARNINGS = (
    # Hydra, of the way in which fairseq calls it.
    ("hydra.experimental.initialize() is no longer experimental", UserWarning, "hydra.experimental.initialize"),
    ("hydra.experimental.compose() is no longer experimental", UserWarning, "hydra.experimental.compose"),
    ("\nThe version_base parameter is not specified.", UserWarning, "hydra.experimental.initialize"),
    ("\nThe strict flag in the compose API is deprecated.", UserWarning, "hydra.compose"),
    ("In 'config': Usage of deprecated keyword in package header", UserWarning, "hydra.core.default_element"),
    # Hydra reports it of whatever called fairseq.
    ("\n'config' is validated against ConfigStore schema with the same name.", UserWarning, ""),
    # torch, of what fairseq does with and without a GPU.
    ("`torch.cuda.amp.autocast(args...)` is deprecated.", FutureWarning, "fairseq.tasks.fairseq_task"),
    ("`torch.cuda.amp.GradScaler(args...)` is deprecated.", FutureWarning, "fairseq.optim.amp_optimizer"),
    ("'pin_memory' argument is set as true but no accelerator is found", UserWarning, "torch.utils.data.dataloader"),
)
# Python's, of fairseq's source when it is compiled: by pip during the install, but by other installers at the first import.
OF_THE_SOURCE = ('"is not" with a literal', "invalid escape sequence")
SOURCE = r".*[\\/]fairseq[\\/]"


def _is_of_no_parameter(record: logging.LogRecord) -> bool:
    """Biases that layers do not have, which the trainer takes for one parameter that they share."""
    return re.fullmatch(r"detected shared parameter: \S+\.bias <- \S+\.bias", record.getMessage()) is not None


def silence() -> None:
    """Leaves out these lines and no others; ``-W`` and filters that a program has set come first."""
    for message, category, module in WARNINGS:
        warnings.filterwarnings(
            "ignore", re.escape(message), category, re.escape(module) + ("$" if module else ""), append=True
        )
    for message in OF_THE_SOURCE:
        warnings.filterwarnings("ignore", message, SyntaxWarning, SOURCE, append=True)
    logging.getLogger("fairseq.trainer").addFilter(lambda record: not _is_of_no_parameter(record))
    # Importing fairseq makes everything tell everything.
    logging.getLogger("hydra.core.utils").setLevel(logging.INFO)
