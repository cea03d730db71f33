"""The options of the tasks."""

import argparse
from dataclasses import dataclass, field
from typing import List, Optional

from fairseq.data.indexed_dataset import get_available_dataset_impl
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II, MISSING


@dataclass
class StreamConfig(FairseqDataclass):
    """Options of all tasks that read streams."""

    data: str = field(
        default=MISSING, metadata={"help": "path to the data-bin; several, separated by ':', are read one an epoch"}
    )
    tokens_per_sample: int = field(
        default=512, metadata={"help": "tokens of each row read at once (the block, T); the memory reaches far beyond"}
    )
    break_memory_at_eos: bool = field(
        default=False,
        metadata={
            "help": "documents end in </s>: from there on, nothing before it is seen, stored or charged; a model that "
            "is trained with this reads so everywhere, and scoring with it makes any model do so"
        },
    )
    save_memory: bool = field(
        default=True,
        metadata={
            "help": "write what is remembered in the middle of an epoch beside the checkpoint, so that a run that was "
            "stopped goes on as if it had not been"
        },
    )
    update_freq: List[int] = II("optimization.update_freq")  # noqa: RUF009
    batch_size_valid: Optional[int] = II("dataset.batch_size_valid")
    max_tokens_valid: Optional[int] = II("dataset.max_tokens_valid")
    disable_validation: bool = II("dataset.disable_validation")
    dataset_impl: Optional[ChoiceEnum(get_available_dataset_impl())] = II("dataset.dataset_impl")  # noqa: RUF009


@dataclass
class MemoryCachingLMConfig(StreamConfig):
    """Options of ``--task memory_caching_lm``."""

    sample_break_mode: ChoiceEnum(["none", "eos"]) = field(
        default="none",
        metadata={
            "help": "what fairseq-generate goes on from: with 'eos' each item (line, document, file) is a prompt"
        },
    )
    lines_are_documents: bool = field(
        default=False,
        metadata={"help": "--break-memory-at-eos also where every line of the data ends in </s> (words)"},
    )
    utf8: bool = field(
        default=False,
        metadata={"help": "a byte model writes valid UTF-8 only, and no character that is incomplete at the end"},
    )


@dataclass
class MemoryCachingTaggingConfig(StreamConfig):
    """Options of ``--task memory_caching_tagging``."""


def add_save_memory(parser: argparse.ArgumentParser) -> None:
    """Adds ``--save-memory`` and ``--no-save-memory``.

    From an option that is on, fairseq makes one that turns it off.
    """
    option = StreamConfig.__dataclass_fields__["save_memory"]
    parser.add_argument(
        "--save-memory", action=argparse.BooleanOptionalAction, default=option.default, help=option.metadata["help"]
    )
