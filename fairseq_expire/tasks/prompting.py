"""The part of a task that serves ``fairseq-generate``, ``fairseq-interactive`` and the hub interface."""

import logging

import torch
from fairseq import utils
from fairseq.data.iterators import EpochBatchIterator
from fairseq.tasks import FairseqTask
from torch import Tensor

from fairseq_expire.fairseq_patches.standard_streams import use_utf8
from fairseq_expire.inference.utf8 import Utf8Mask
from fairseq_expire.streaming.prompts import Items, PromptDataset
from fairseq_expire.tasks.generation import MemoryGenerator, check_generation_options
from fairseq_expire.tasks.scoring import BlockScorer
from fairseq_expire.tokenizers.bound import BoundTokenizer, Text

logger = logging.getLogger(__name__)


class TokenizerBPE:
    """A tokenizer in the place of fairseq's BPE: from text to the names of its symbols with spaces between, and back.

    Args:
        tokenizer: the tokenizer of the data that the model was trained on.
    """

    def __init__(self, tokenizer: BoundTokenizer):
        self.tokenizer = tokenizer

    def encode(self, text: Text) -> str:
        """Returns names of symbols.

        Raises ValueError if the text has bytes that are not UTF-8 and symbols are not bytes.
        """
        symbols = self.tokenizer.symbols
        return " ".join([symbols[index] for index in self.tokenizer.encode(text)])

    def decode(self, names: str) -> str:
        """Returns the text. Bytes that are not UTF-8 become U+FFFD."""
        return self.tokenizer.decode(map(self.tokenizer.dictionary.index, names.split()))


class PromptingTask(FairseqTask):
    """A task whose models continue prompts.

    Subclasses have a ``dictionary``, the ``level`` of its symbols ("bytes", "chars", "words", "subword", or None), and
    the options ``data``, ``tokens_per_sample`` and ``utf8``.
    """

    # For fairseq-interactive: whether text may be other than UTF-8, and how many lines have been read.
    _takes_any_bytes = False
    _lines_read = 0

    def build_generator(
        self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, prefix_allowed_tokens_fn=None
    ) -> BlockScorer | MemoryGenerator:
        """Returns what scores texts or continues prompts. Raises ValueError for an option that would have no effect."""
        check_generation_options(args)
        block = self.cfg.tokens_per_sample
        if args.score_reference:
            return BlockScorer(self.dictionary, block=block)
        if seq_gen_cls is None:
            utf8 = Utf8Mask(self.dictionary.symbols) if self.cfg.utf8 else None
            seq_gen_cls, extra_gen_cls_kwargs = (
                MemoryGenerator,
                {**(extra_gen_cls_kwargs or {}), "block": block, "utf8": utf8},
            )
        return super().build_generator(models, args, seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn)

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None) -> PromptDataset:
        """Returns lines of text as prompts, without padding and the ``</s>`` that fairseq puts at their ends."""
        lines = [self._prompt(line[: int(length)]) for line, length in zip(src_tokens, src_lengths)]
        return self.prompts(lines, [len(line) for line in lines], strip_eos=False)

    def _prompt(self, line: Tensor) -> Tensor:
        # Only padding of a row that a program padded is at the end: fairseq puts </s> behind a line of text.
        real = (line != self.dictionary.pad()).nonzero()
        line = line[: int(real[-1]) + 1 if len(real) else 0]
        return self.text_tokens(line[:-1] if len(line) and line[-1] == self.dictionary.eos() else line)

    def text_tokens(self, tokens: Tensor) -> Tensor:
        """Returns the symbols [N] int64 of a text, with ``<unk>`` for a literal ``<pad>``: fairseq's padding stands for
        no text.
        """
        return tokens.masked_fill(tokens == self.dictionary.pad(), self.dictionary.unk())

    def prompts(self, items: Items, sizes, *, strip_eos: bool) -> PromptDataset:
        """Returns items of these sizes as prompts; see :class:`PromptDataset`."""
        dictionary, block = self.dictionary, self.cfg.tokens_per_sample
        return PromptDataset(items, sizes, pad=dictionary.pad(), eos=dictionary.eos(), strip_eos=strip_eos, block=block)

    @staticmethod
    def prompt_batches(
        dataset: PromptDataset,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        data_buffer_size: int = 0,
        **unused,
    ) -> EpochBatchIterator:
        """Returns an iterator over prompts; the arguments are those of fairseq's ``get_batch_iterator``."""
        return EpochBatchIterator(
            dataset=dataset,
            collate_fn=dataset.collater,
            batch_sampler=dataset.batch_by_size(dataset.ordered_indices(), max_tokens, max_sentences),
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            buffer_size=data_buffer_size,
        )

    @torch.no_grad()
    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Returns the hypotheses of each row, best first. Raises ValueError if the batch is a block of a stream."""
        if "memory" in sample["net_input"]:
            raise ValueError(
                "fairseq-generate goes on from the items (lines, documents, files) of a split, and this split was "
                "opened as one stream: give --sample-break-mode eos"
            )
        return generator.generate(models, sample, prefix_tokens=prefix_tokens, constraints=constraints)

    def build_bpe(self, args):
        """Returns :meth:`text_encoder`. fairseq's commands call this before they read or print any text."""
        use_utf8()
        bpe = self.text_encoder(args)
        self._takes_any_bytes = self.level == "bytes" and isinstance(bpe, TokenizerBPE)
        return bpe

    def get_interactive_tokens_and_lengths(self, lines, encode_fn):
        """Returns the symbols of lines and their numbers.

        A byte model reads bytes that are not UTF-8 as they are. Another model reads U+FFFD in their place, with a
        warning.
        """
        if not self._takes_any_bytes:
            lines = [self._readable(line, number) for number, line in enumerate(lines, start=self._lines_read + 1)]
        self._lines_read += len(lines)
        return super().get_interactive_tokens_and_lengths(lines, encode_fn)

    def _readable(self, line: str, number: int) -> str:
        content = line.encode("utf-8", "surrogateescape")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            logger.warning(
                "line %d is not UTF-8 at its byte %d (%s), and the symbols of this model are %s: it is read with "
                "U+FFFD there; convert the text, or take a model of bytes",
                number,
                error.start,
                error.reason,
                self.level or "words",
            )
            return content.decode("utf-8", "replace")

    def text_encoder(self, args):
        """Returns what makes symbols of text: the one that ``--bpe`` names, or else the tokenizer of the data.

        It is None where words are the symbols.
        """
        bpe = super().build_bpe(args)
        if bpe is None and self.level not in (None, "words"):
            bpe = TokenizerBPE(BoundTokenizer.load(utils.split_paths(self.cfg.data)[0]))
        return bpe
