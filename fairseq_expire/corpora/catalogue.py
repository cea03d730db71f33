"""Published corpora: their addresses, the checksums of their files, and the counts that are known of them."""

from functools import cache
from importlib import resources

import numpy as np

from fairseq_expire.corpora.download import RemoteFile

ENWIK8_ZIP = RemoteFile(
    name="enwik8.zip",
    urls=("http://mattmahoney.net/dc/enwik8.zip", "https://data.deepai.org/enwik8.zip"),
    size=36_445_475,
    sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
)
# Not available separately, only in the archive.
ENWIK8 = RemoteFile(
    name="enwik8",
    urls=(),
    size=100_000_000,
    sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
)

WIKITEXT103_ZIP = RemoteFile(
    name="wikitext-103-v1.zip",
    urls=("https://wikitext.smerity.com/wikitext-103-v1.zip",),
    size=190_229_076,
    sha256="242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
)
WIKITEXT103_FILES = {split: f"wiki.{split}.tokens" for split in ("train", "valid", "test")}
# Their folder in the archive.
WIKITEXT103_FOLDER = "wikitext-103"
WIKITEXT103_CHECKED = (
    RemoteFile(
        name="wiki.valid.tokens",
        urls=(),
        size=1_121_681,
        sha256="f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    ),
    RemoteFile(
        name="wiki.test.tokens",
        urls=(),
        size=1_256_449,
        sha256="d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    ),
)
# These counts include `</s>` at the end of lines and the `<unk>` of the text itself.
WIKITEXT103_WORD_TYPES = 267_735
WIKITEXT103_LINES = {"train": 1_801_350, "valid": 3_760, "test": 4_358}
WIKITEXT103_TOKENS = {"valid": 217_646, "test": 245_569}

PG19_ADDRESS = "https://storage.googleapis.com/deepmind-gutenberg"
# The name of each split here, and in the corpus.
PG19_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
# Published with the corpus (Rae et al., 2020, table 1). Perplexities per word compare if these are used.
PG19_WORDS = {"train": 1_973_136_207, "valid": 3_007_061, "test": 6_966_499}


@cache
def pg19_books() -> dict[str, list[RemoteFile]]:
    """The books of each split, in the order of their names."""
    with resources.files("fairseq_expire.corpora").joinpath("pg19_books.npz").open("rb") as file:
        table = np.load(file)
        books = {}
        for split, folder in PG19_SPLITS.items():
            numbers, sizes, hashes = (table[f"{split}_{column}"] for column in ("number", "size", "sha256"))
            books[split] = [
                RemoteFile(
                    name=f"{folder}/{number}.txt",
                    urls=(f"{PG19_ADDRESS}/{folder}/{number}.txt",),
                    size=size,
                    sha256=sha256.tobytes().hex(),
                )
                for number, size, sha256 in zip(numbers.tolist(), sizes.tolist(), hashes)
            ]
    return books
