"""The task of language modelling over contiguous streams, with a memory that outlives the batch."""

import logging
from pathlib import Path

from fairseq import utils
from fairseq.data import Dictionary
from fairseq.data.iterators import EpochBatchIterator
from fairseq.tasks import register_task

from fairseq_expire.fairseq_patches.fusion import check_target_dictionary
from fairseq_expire.streaming.corpus import TextCorpus, read_answers
from fairseq_expire.streaming.prompts import PromptDataset, StreamItems
from fairseq_expire.streaming.published_units import ScoreSum, score_lines
from fairseq_expire.streaming.token_stream import TokenStream
from fairseq_expire.tasks.data_folder import check_split, read_dictionary
from fairseq_expire.tasks.options import MemoryCachingLMConfig
from fairseq_expire.tasks.prompting import PromptingTask
from fairseq_expire.tasks.stream_task import StreamTask
from fairseq_expire.tokenizers.manifest import Manifest, read_manifest

logger = logging.getLogger(__name__)

NO_ITEMS = (
    "reads a split as one stream, across the borders of its items: leave out --sample-break-mode eos, with which "
    "fairseq-generate takes each item as a prompt"
)


@register_task("memory_caching_lm", dataclass=MemoryCachingLMConfig)
class MemoryCachingLMTask(StreamTask, PromptingTask):
    """Language modelling: every token of a split is a target exactly once; see :class:`StreamTask`."""

    name = "memory_caching_lm"

    def __init__(self, cfg: MemoryCachingLMConfig, dictionary: Dictionary, manifest: Manifest | None):
        super().__init__(cfg, dictionary)
        # Of the data in the first folder, if it has one.
        self.manifest = manifest
        # "bytes", "chars", "words", "subword", or None if it is unknown.
        self.level = manifest.level if manifest else None
        if cfg.utf8 and self.level != "bytes":
            level = self.level or "words, by all that is known"
            raise ValueError(
                f"--utf8 is for models of bytes, and the symbols in {cfg.data} are {level}: leave the option out"
            )

    @classmethod
    def setup_task(cls, cfg: MemoryCachingLMConfig, from_checkpoint: bool = False):
        cls.check_start(cfg)
        folders = [Path(folder) for folder in utils.split_paths(cfg.data)]
        dictionary = read_dictionary(folders[0])
        _check_borders(cfg, folders[0])
        for folder in folders[1:]:
            read_dictionary(folder)
            _check_borders(cfg, folder)
            if (folder / "dict.txt").read_bytes() != (folders[0] / "dict.txt").read_bytes():
                raise ValueError(
                    f"{folder}/dict.txt differs from {folders[0]}/dict.txt: the same numbers would stand for other "
                    "symbols; prepare all folders with one dictionary (data_prep/text.py --dict)"
                )
        if from_checkpoint:
            check_target_dictionary(folders[0], dictionary)
        manifest = read_manifest(folders[0])
        logger.info("dictionary: %d types (%s)", len(dictionary), manifest.level if manifest else "level unknown")
        return cls(cfg, dictionary, manifest)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Opens a split.

        Raises:
            FileNotFoundError: a file of the split is missing.
            ValueError: a file is damaged; the message names it.
        """
        folders = utils.split_paths(self.cfg.data)
        folder = folders[(epoch - 1) % len(folders)]
        # Only fairseq's trainer passes a data selector. It tells training from validating or scoring the same split,
        # for which --update-freq means nothing.
        training = "data_selector" in kwargs
        parts = self.parts(folder, split, combine, training_needs_it=training)
        dictionary = self.dictionary
        stream = TokenStream(parts, num_symbols=len(dictionary), pad=dictionary.pad(), unk=dictionary.unk())
        if len(parts) == 1:
            check_split(Path(folder), split, tokens=len(stream))
        logger.info("%s: %d tokens in %s", split, len(stream), ", ".join(parts))
        if self.cfg.sample_break_mode == "eos":
            if training:
                raise ValueError(f"fairseq-train {NO_ITEMS}")
            items = StreamItems(stream)
            self.datasets[split] = self.prompts(items, items.sizes, strip_eos=True)
            return
        answers = None if training else read_answers(Path(folder, f"{split}.answers.npy"), tokens=len(stream))
        self.add_split(split, TextCorpus(stream, eos=dictionary.eos(), answers=answers), training=training)

    def get_batch_iterator(self, dataset, **options) -> EpochBatchIterator:
        """Returns an iterator over the blocks of this process, or over the prompts to continue."""
        if isinstance(dataset, PromptDataset):
            return self.prompt_batches(dataset, **options)
        return super().get_batch_iterator(dataset, **options)

    def eval_lm_dataloader(self, dataset, **options):
        """See :meth:`StreamTask.eval_lm_dataloader`. Raises ValueError if the split was opened as prompts."""
        if isinstance(dataset, PromptDataset):
            raise ValueError(f"fairseq-eval-lm {NO_ITEMS}")
        return super().eval_lm_dataloader(dataset, **options)

    def score_lines(self, split: str, score: ScoreSum) -> list[str]:
        lines = super().score_lines(split, score)
        if self.manifest:
            lines += score_lines(self.manifest, split, tokens=score.tokens, bits=score.bits)
        return lines

    def valid_step(self, sample, model, criterion):
        if self.cfg.sample_break_mode == "eos":
            raise ValueError(f"fairseq-validate {NO_ITEMS}")
        return super().valid_step(sample, model, criterion)


def _check_borders(cfg: MemoryCachingLMConfig, folder: Path) -> None:
    """Raises ValueError if ``</s>`` would end a document where it ends every line."""
    if not cfg.break_memory_at_eos:
        if cfg.lines_are_documents:
            raise ValueError("--lines-are-documents only works together with --break-memory-at-eos")
        return
    manifest = read_manifest(folder)
    if manifest is None:
        return
    if manifest.lines_end_in_eos and not cfg.lines_are_documents:
        raise ValueError(
            f"in {folder} every line ends in </s> ({manifest.level}), and --break-memory-at-eos would forget all at "
            "each: leave it out, make data of which only documents end in </s> (data_prep/text.py --append-eos, not "
            "words), or say that each line is a document with --lines-are-documents"
        )
    if not (manifest.lines_end_in_eos or manifest.append_eos):
        logger.warning(
            "no document in %s ends in </s>, so that --break-memory-at-eos finds no border there: make the data with "
            "data_prep/text.py --append-eos",
            folder,
        )
