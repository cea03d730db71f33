"""Memory of a process while a long text arrives in small parts, through ``fairseq_expire.load(...).stream()``.

After each part the next byte is predicted. Now and then the model generates a little text.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from peak import resident

import fairseq_expire
from fairseq_expire.inference import TextModel
from fairseq_expire.modules import ExpireSpan, LanguageModel, LanguageModelConfig
from fairseq_expire.tokenizers.bound import BoundTokenizer, make_tokenizer
from fairseq_expire.tokenizers.bytes_and_chars import byte_symbol
from fairseq_expire.tokenizers.dictionary import PlainDictionary, dictionary_digest

REPORTS = 24


def untrained(width: int) -> TextModel:
    """Returns a byte model with random weights, whose spans are spread around 256 steps."""
    tokenizer = BoundTokenizer(PlainDictionary([byte_symbol(byte) for byte in range(256)]), make_tokenizer("bytes", {}))
    torch.manual_seed(0)
    config = LanguageModelConfig(
        vocab_size=len(tokenizer.symbols),
        pad=tokenizer.pad,
        embed_dim=width,
        num_heads=4,
        ffn_dim=4 * width,
        num_layers=2,
        position_range=128,
        policy=partial(ExpireSpan, embed_dim=width, max_span=65536, ramp=64, span_init=256),
    )
    model = LanguageModel(config, dictionary_digest(tokenizer.symbols))
    for layer in model.stack.layers:
        torch.nn.init.normal_(layer.policy.predictor.weight, std=0.5 * width**-0.5)
    return TextModel(model, tokenizer)


def part_of(text: bytes, size: int, start: int) -> bytes:
    """Returns the next part of a text that is repeated without end."""
    start %= len(text)
    return (text[start : start + size] + text[: max(0, start + size - len(text))])[:size]


def follow(model: TextModel, text: bytes, *, part: int, minutes: float, num_bytes: int) -> Iterator[dict[str, float]]:
    """Reads a text and yields ``REPORTS`` measurements until the given time or length, whichever comes first."""
    stream, read, start = model.stream(), 0, time.perf_counter()
    reports = 1
    while True:
        stream.feed(part_of(text, part, read))
        stream.next_distribution()
        read += part
        seconds = time.perf_counter() - start
        done = max(read / num_bytes, seconds / (60 * minutes))
        if done * REPORTS < reports:
            continue
        reports = int(done * REPORTS) + 1
        written = "".join(stream.generate(max_tokens=20, seed=0))
        yield {
            "seconds": seconds,
            "bytes": read,
            "written": len(written),
            "states": max(stream.memory_sizes),
            "memory": stream.memory_bytes,
            "resident": resident(),
        }
        if done >= 1:
            return


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="an exported model or a checkpoint (default: random weights)")
    parser.add_argument("--width", type=int, default=128, help="of the model with random weights (default: 128)")
    parser.add_argument("--text", default=__file__, help="file that is read again and again (default: this one)")
    parser.add_argument("--part", type=int, default=200, help="bytes that arrive at once (default: 200)")
    parser.add_argument("--minutes", type=float, default=5.0, help="end after so many (default: 5)")
    parser.add_argument("--bytes", type=int, default=10**12, help="end after so much text")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each line")
    args = parser.parse_args(arguments)
    model = fairseq_expire.load(args.model) if args.model else untrained(args.width)
    text = Path(args.text).read_bytes()
    for row in follow(model, text, part=args.part, minutes=args.minutes, num_bytes=args.bytes):
        if args.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['seconds']:6.0f} s  {row['bytes']:11,} bytes read  {row['states']:6,} states in the largest "
                f"layer  {row['memory'] / 2**20:6.2f} MB of memory  {row['resident'] / 2**20:6.0f} MB resident",
                flush=True,
            )


if __name__ == "__main__":
    main()
