"""What a task says to ``fairseq-generate``, ``fairseq-interactive`` and the hub interface."""

import logging

import torch
from fairseq import utils
from fairseq.tasks import FairseqTask
from torch import Tensor

from fairseq_expire.fairseq_patches.text_streams import use_utf8
from fairseq_expire.inference.utf8 import Utf8Mask
from fairseq_expire.streaming.prompts import Items, PromptDataset
from fairseq_expire.tasks.generation import MemoryGenerator, check_generation_options
from fairseq_expire.tasks.reading import BlockScorer
from fairseq_expire.tasks.symbols_of_text import SymbolsOfText
from fairseq_expire.tokenizers.bound import BoundTokenizer

logger = logging.getLogger(__name__)


class PromptingTask(FairseqTask):
    """A task whose models go on from prompts.

    Subclasses have a ``dictionary``, the ``level`` of its symbols ("bytes", "chars", "words", "subword", or None), and options
    ``data``, ``tokens_per_sample`` and ``utf8``.
    """

    # Of fairseq-interactive: whether text need not be UTF-8, and how many lines have been read.
    _takes_any_bytes = False
    _lines_read = 0

    def build_generator(
        self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, prefix_allowed_tokens_fn=None
    ) -> BlockScorer | MemoryGenerator:
        """What scores texts, or goes on from prompts. Raises ValueError if fairseq's options ask for what cannot be done."""
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
        """Lines of text as prompts, without the ``</s>`` that fairseq ends each with, and without padding behind it."""
        lines = [self._prompt(line[: int(length)]) for line, length in zip(src_tokens, src_lengths)]
        return self.prompts(lines, [len(line) for line in lines], strip_eos=False)

    def _prompt(self, line: Tensor) -> Tensor:
        # Only a row that was padded by hand ends in padding: behind what is written in a text comes fairseq's </s>.
        real = (line != self.dictionary.pad()).nonzero()
        line = line[: int(real[-1]) + 1 if len(real) else 0]
        return self.text_tokens(line[:-1] if len(line) and line[-1] == self.dictionary.eos() else line)

    def text_tokens(self, tokens: Tensor) -> Tensor:
        """[N] int64, the symbols of a text: ``<pad>`` written in it is an unknown word, since fairseq's symbol of that name stands
        for no text."""
        return tokens.masked_fill(tokens == self.dictionary.pad(), self.dictionary.unk())

    def prompts(self, items: Items, sizes, *, strip_eos: bool) -> PromptDataset:
        """Items of these sizes as prompts; see :class:`PromptDataset`."""
        dictionary, block = self.dictionary, self.cfg.tokens_per_sample
        return PromptDataset(items, sizes, pad=dictionary.pad(), eos=dictionary.eos(), strip_eos=strip_eos, block=block)

    @torch.no_grad()
    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Hypotheses for each row of a batch, best first. Raises ValueError if the batch is a block of a stream."""
        if "memory" in sample["net_input"]:
            raise ValueError(
                "fairseq-generate goes on from the items (lines, documents, files) of a split, and this split was opened as "
                "one stream: give --sample-break-mode eos"
            )
        return generator.generate(models, sample, prefix_tokens=prefix_tokens, constraints=constraints)

    def build_bpe(self, args):
        """What makes symbols of text for ``fairseq-interactive`` and ``fairseq-generate``, which ask before they read or print any;
        see :meth:`symbols_of_text`."""
        use_utf8()
        bpe = self.symbols_of_text(args)
        self._takes_any_bytes = self.level == "bytes" and isinstance(bpe, SymbolsOfText)
        return bpe

    def get_interactive_tokens_and_lengths(self, lines, encode_fn):
        """The symbols of lines and their numbers. A line that is not UTF-8 is read as it is by a model of bytes; by another one
        with U+FFFD in place of what is not, and the log says so."""
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
                "line %d is not UTF-8 at its byte %d (%s), and the symbols of this model are %s: it is read with U+FFFD there; "
                "convert the text, or take a model of bytes", number, error.start, error.reason, self.level or "words",
            )  # fmt: skip
            return content.decode("utf-8", "replace")

    def symbols_of_text(self, args):
        """What makes symbols of text: what ``--bpe`` asks for, or else what the data was made with."""
        bpe = super().build_bpe(args)
        # Words are symbols as they are.
        if bpe is None and self.level not in (None, "words"):
            bpe = SymbolsOfText(BoundTokenizer.of(utils.split_paths(self.cfg.data)[0]))
        return bpe
