"""The task of labelling contiguous streams, with a memory that outlives the batch."""

import logging
from pathlib import Path

from fairseq import utils
from fairseq.tasks import register_task

from fairseq_expire.streaming.corpus import LabelledCorpus
from fairseq_expire.streaming.token_stream import TokenStream
from fairseq_expire.tasks.data_folder import LabelledDictionaries, check_labelled_split, read_labelled_dictionaries
from fairseq_expire.tasks.options import MemoryCachingTaggingConfig
from fairseq_expire.tasks.stream_task import StreamTask

logger = logging.getLogger(__name__)

# The folders of the two streams in a folder of data, as fairseq's own tasks name them.
INPUT, LABEL = "input0", "label"


@register_task("memory_caching_tagging", dataclass=MemoryCachingTaggingConfig)
class MemoryCachingTaggingTask(StreamTask):
    """Predicts a label for each token of a stream, where one counts; see :class:`StreamTask`.

    Label t belongs to input t: nothing is shifted. Labels ``<pad>`` and ``</s>`` do not count.
    """

    name = "memory_caching_tagging"

    def __init__(self, cfg: MemoryCachingTaggingConfig, dictionaries: LabelledDictionaries):
        super().__init__(cfg, dictionaries.inputs, dictionaries.labels)
        self._scores = False

    @classmethod
    def setup_task(cls, cfg: MemoryCachingTaggingConfig, from_checkpoint: bool = False):
        cls.check_start(cfg)
        folders = [Path(folder) for folder in utils.split_paths(cfg.data)]
        dictionaries = read_labelled_dictionaries(folders[0])
        for folder in folders[1:]:
            read_labelled_dictionaries(folder)
            for name in (INPUT, LABEL):
                first, other = (Path(each, name, "dict.txt") for each in (folders[0], folder))
                if other.read_bytes() != first.read_bytes():
                    raise ValueError(
                        f"{other} differs from {first}: the same numbers would stand for other symbols; prepare all "
                        "folders with the same dictionaries"
                    )
        logger.info("dictionaries: %d types of inputs, %d of labels", *map(len, dictionaries))
        return cls(cfg, dictionaries)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Opens a split.

        Raises:
            FileNotFoundError: a file of the split is missing.
            ValueError: a file is damaged, or inputs and labels differ in length or items; the message names it.
        """
        folders = utils.split_paths(self.cfg.data)
        folder = Path(folders[(epoch - 1) % len(folders)])
        # Only fairseq's trainer passes a data selector. It tells training from validating or scoring the same split.
        training = "data_selector" in kwargs
        streams = []
        for name, dictionary in ((INPUT, self.dictionary), (LABEL, self.label_dictionary)):
            parts = self.parts(str(folder / name), split, combine, training_needs_it=training)
            streams.append(
                TokenStream(
                    parts,
                    num_symbols=len(dictionary),
                    pad=dictionary.pad(),
                    unk=dictionary.unk(),
                    keep_padding=name == LABEL,
                )
            )
        corpus = LabelledCorpus(*streams, eos=self.label_dictionary.eos())
        if len(parts) == 1:
            check_labelled_split(folder, split, tokens=len(corpus), labels=corpus.count)
        logger.info("%s: %d tokens, %d labels that count, in %s", split, len(corpus), corpus.count, folder)
        self.add_split(split, corpus, training=training)

    def eval_lm_dataloader(self, dataset, **options):
        self._scores = True
        return super().eval_lm_dataloader(dataset, **options)

    @property
    def source_dictionary(self):
        # From here on, fairseq-eval-lm names targets by this dictionary (--output-word-probs).
        return self.label_dictionary if self._scores else self.dictionary

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, prefix_allowed_tokens_fn=None):
        raise ValueError(
            "--task memory_caching_tagging predicts labels and generates no text: score it with fairseq-eval-lm or "
            "fairseq-validate"
        )
