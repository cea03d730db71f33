"""--utf8: a byte model generates valid UTF-8 only."""

import commands
import pytest
import torch
from building import build
from fairseq.data import Dictionary
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf

from fairseq_expire.tasks.memory_caching_lm import MemoryCachingLMConfig, MemoryCachingLMTask
from fairseq_expire.tokenizers.bytes_and_chars import byte_of, byte_symbol
from fairseq_expire.tokenizers.manifest import Manifest

DICTIONARY = Dictionary()
for byte in range(256):
    DICTIONARY.add_symbol(byte_symbol(byte))
PROMPTS = ["naïve ", "中", "", "plain", "\U0001f600 é"]


@pytest.fixture(scope="module")
def model():
    """A model that generates any byte after any other, and rarely ends."""
    torch.manual_seed(0)
    return build(*commands.MODEL, "--max-span", "12", symbols=260, arch="transformer_xl_lm").eval()


def written(model, prompts, *, utf8, seed=0, **changes):
    """Returns the bytes of all hypotheses, without ``</s>``."""
    manifest = Manifest("0", "bytes", {"newlines": "keep"}, {}, False, 260, "", {})
    task = MemoryCachingLMTask(MemoryCachingLMConfig(data="", tokens_per_sample=8, utf8=utf8), DICTIONARY, manifest)
    options = OmegaConf.merge(OmegaConf.structured(GenerationConfig()), {"max_len_a": 1, **changes})
    lines = [torch.tensor([DICTIONARY.index(byte_symbol(b)) for b in p], dtype=torch.int64) for p in prompts]
    dataset = task.build_dataset_for_inference(lines, [len(line) for line in lines])
    torch.manual_seed(seed)
    sample = dataset.collater([dataset[number] for number in range(len(lines))])
    found = task.inference_step(task.build_generator([model], options), [model], sample)
    return [
        bytes(byte_of(DICTIONARY[n]) for n in hypothesis["tokens"].tolist() if n >= DICTIONARY.nspecial)
        for row in found
        for hypothesis in row
    ]


def is_utf8(text):
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": True, "beam": 3},
        {"sampling": True, "beam": 3, "sampling_topk": 30, "temperature": 2.0},
        {"sampling": True, "beam": 3, "sampling_topp": 0.5},
        {"beam": 4},
        {"beam": 4, "no_repeat_ngram_size": 1},
    ],
    ids=str,
)
def test_the_output_is_valid_utf8(model, changes, long):
    prompts = [prompt.encode() for prompt in PROMPTS]
    lengths = range(0, 12, 1 if long else 4)
    for length in lengths:
        for seed in range(4 if long else 1):
            texts = written(model, prompts, utf8=True, max_len_b=length, seed=seed, **changes)
            assert len(texts) >= len(prompts) and all(map(is_utf8, texts)), texts
    free = written(model, prompts, utf8=False, max_len_b=lengths[-1], **changes)
    assert not all(map(is_utf8, free)), "without the option, the output is not UTF-8"
    assert any(not text.isascii() for text in texts), "the output is more than ASCII"


@pytest.mark.parametrize("sampling", [False, True], ids=["greedy", "sampled"])
def test_one_prompt_with_one_hypothesis(model, sampling):
    for prompt in PROMPTS:
        (text,) = written(model, [prompt.encode()], utf8=True, max_len_b=6, sampling=sampling, beam=1)
        assert is_utf8(text) and text.startswith(prompt.encode())


def test_a_prompt_cut_within_a_character_is_completed(model):
    cut = ["é".encode()[:1], "中".encode()[:2], "\U0001f600".encode()[:1]]
    texts = written(model, cut, utf8=True, max_len_b=4, sampling=True, beam=2)
    assert all(map(is_utf8, texts))
    assert all(text.startswith(cut[number // 2]) for number, text in enumerate(texts))
    with pytest.raises(ValueError, match="in the middle of a character, which 2 more tokens"):
        written(model, cut[2:], utf8=True, max_len_b=1)


def test_only_byte_models():
    for level, words in (("chars", "are chars"), (None, "are words, by all that is known")):
        manifest = level and Manifest("0", level, {}, {}, False, 260, "", {})
        with pytest.raises(ValueError, match=f"--utf8 is for models of bytes, and the symbols in data {words}"):
            MemoryCachingLMTask(MemoryCachingLMConfig(data="data", utf8=True), DICTIONARY, manifest)
