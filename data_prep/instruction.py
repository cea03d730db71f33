"""Generate the instruction task: "can you tell the butler that the cook wants to see them?", done where the butler is.

A stream of text, a line a sequence. Somebody gives an instruction; many other sequences follow; then the agent comes to
a place where the butler is, and the next line is the answer: You tell the butler "cook wants to see you!". Several
instructions are open at a time, each for somebody else. People for whom there is none are met, too.
"""

import argparse
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fairseq_expire.fairseq_version import require_for_command

# Before the imports that need fairseq.
require_for_command("instruction.py")

from fairseq_expire.corpora.answers import TextPart, verify_answers, write_answers, write_texts  # noqa: E402
from fairseq_expire.corpora.binarize import Job  # noqa: E402
from fairseq_expire.corpora.command import Parser, Progress, make_data, positive  # noqa: E402
from fairseq_expire.corpora.compressed import UNPACKED, unpack  # noqa: E402
from fairseq_expire.corpora.generated import random_numbers  # noqa: E402
from fairseq_expire.corpora.generated_command import natural  # noqa: E402
from fairseq_expire.corpora.sources import SPLITS, find_files  # noqa: E402
from fairseq_expire.files import check_replaceable, naming_file_in_errors  # noqa: E402
from fairseq_expire.tokenizers.bound import make_tokenizer  # noqa: E402
from fairseq_expire.tokenizers.chunks import CHUNK_BYTES, FileSlice, at_line, split_into_chunks  # noqa: E402
from fairseq_expire.tokenizers.manifest import FILE_NAME, Manifest  # noqa: E402
from fairseq_expire.tokenizers.tokenizer import normalise_line_ends  # noqa: E402

# Writes a sentence for a level.
Write = Callable[[str], str]

# The paper's mean number of sequences between an instruction and its answer.
MEAN_DISTRACTORS = 950
# So that a part, which has an instruction of each thread at least, fits in memory.
MOST_DISTRACTORS = 100_000
EPISODES, QUEUE, VOCAB_SIZE = 10_000, 3, 512
# About how many distractors a part has.
PART_LINES = 1 << 15
# Shares of train, valid and test, in the lines of --distractors.
SHARES = (0.8, 0.1, 0.1)

INSTRUCTION = 'The {speaker} says, "can you tell the {target} that the {sender} wants to see them?"'
ARRIVAL = "You go to the {place}. The {who} is here."
ANSWER = 'You tell the {target} "{sender} wants to see you!"'
# Only the sentences above have these words.
MARKERS = re.compile(r"\b(tell the|is here|wants? to see)\b", re.IGNORECASE)

PEOPLE = """
town official, butler, cook, court wizard, royal guard, stable boy, old fisherman, village priest, night watchman,
queen, king, young prince, head gardener, tax collector, market trader, travelling minstrel, blacksmith, miller,
innkeeper, palace maid, tower archer, ship captain, lost pilgrim, village elder, chief librarian, bridge troll, forest
witch, cave hermit, gold miner, candle maker, city jester, bell ringer, grave digger, royal tailor, bread baker, herb
healer, horse dealer, harbour master, road builder, map maker, spice merchant, goat herder, tax clerk, chess master
"""
PLACES = """
market square, throne room, castle kitchen, rose garden, harbour, old mill, chapel, watchtower, royal stables, wine
cellar, village well, stone bridge, dark forest, fishing pier, city gate, great hall, library, armoury, bakery,
blacksmith shop, graveyard, lighthouse, tavern, north road, river bank, cave entrance, servants quarters, dungeon,
courtyard, apple orchard, bell tower, tailor shop, town hall, wheat field, hidden passage, treasure chamber
"""
THINGS = """
silver cup, wooden chest, rusty sword, old map, loaf of bread, lantern, leather boot, iron key, blue cloak, basket of
fish, candle, wool blanket, golden ring, broken shield, bag of flour, horse saddle, glass bottle, torn letter, rope,
green apple, clay pot, white feather, stone tablet, copper coin, hunting horn, music box, wheel of cheese, black
feather, bucket, fur hat, hammer, prayer book
"""
QUALITIES = """
quiet, cold, warm, dusty, bright, crowded, strange, peaceful, damp, narrow, ancient, noisy, clean, gloomy, famous,
pleasant, dangerous, empty, lovely, windy, grand, simple
"""
TOPICS = """
weather, harvest, coming war, new tax, winter feast, royal wedding, missing cattle, flood, dragon, old king, summer
fair, price of grain, broken bridge, stolen crown, long journey, wolves, secret tunnel, holy day, late ship, great
fire, dreams, rules of the guild
"""
# Sentences that need no memory. Questions and requests look like instructions.
SENTENCES = """
The {place} is {quality} today.
The {place} is {quality}, and somebody has left the {thing} near the door.
You look around the {place}. It is {quality} and smells of smoke.
You go to the {place}. Nobody is there.
You go to the {place}. It looks {quality}, but you find only the {thing}.
You pick up the {thing}. It feels {quality}.
You put the {thing} down in the {place}.
You wait for a while, and think about the {topic}.
You wave at the {who}, who smiles and walks away.
You ask the {who} about the {topic}, but get no reply.
You give the {thing} to the {who}.
You follow the {who} from the {place} and soon lose the way.
The {who} walks slowly to the {place}.
The {who} hides the {thing} behind a wall of the {place}.
The {who} gives the {thing} to the {whom}.
The {who} takes the {thing} from the {whom} and laughs.
The {who} has lost the {thing} and looks for it in the {place}.
The {who} sings about the {topic} until the {whom} falls asleep.
The {who} and the {whom} talk about the {topic} for hours.
The {who} never trusted the {whom}, and everybody knows it.
The {who} bows before the {whom} and leaves the {place}.
The {who} says, "good day, my friend! What brings you to the {place}?"
The {who} says, "the {topic} will ruin us all."
The {who} says, "I have not seen the {whom} since the {topic}."
The {who} says, "the {whom} sold me this {thing}, and it is worth nothing!"
The {who} says, "can you bring the {thing} to the {place}?"
The {who} says, "can you ask the {whom} where the {thing} was made?"
The {who} says, "can you believe that the {whom} was afraid of the {topic}?"
The {who} says, "they told me that the {whom} wants to buy the {thing}."
The {who} says, "the {whom} sees nobody before the {topic} has been settled."
The {who} says, "I heard that the {place} is {quality} at night."
The {who} says, "please do not speak with the {whom} about the {topic}."
The {who} says, "my family has lived near the {place} for many years."
The {who} says, "would you like this {thing}? It is {quality}, and I ask for little."
The {who} asks, "did you see the {whom} in the {place} yesterday?"
The {who} asks, "do you know if the {whom} still owns the {thing}?"
The {who} asks, "why is the {place} so {quality} these days?"
The {who} asks, "what does the {whom} think of the {topic}?"
You say, "I was in the {place} this morning, and it was {quality}."
You say, "thank you, but I already have the {thing}."
You say, "the {who} loves the {topic}, and so does the {whom}."
You hear that the {who} has left for the {place} because of the {topic}.
You hear steps in the {place}, but it was only the {who}.
You read in a book about the {topic} and the {quality} life of the {who}.
"""


def listed(text: str) -> list[str]:
    """The phrases of a text with commas between them."""
    return [" ".join(phrase.split()) for phrase in text.split(",")]


def separated(text: str) -> str:
    """A text with a space between a word and a punctuation mark, so that both are words. Fields in braces are words."""
    return " ".join(re.findall(r"\{\w+\}|\w+(?:['\u2019-]\w+)*|[^\w\s]", text))


def words_of(sentences: Iterable[str]) -> set[str]:
    """All words of sentences but their fields."""
    return {word for sentence in sentences for word in sentence.split() if not word.startswith("{")}


class Distractors(Protocol):
    """A source of sequences that are no instructions and no answers.

    Attributes:
        words: all words of the grammar, if there is one.
    """

    words: set[str]

    def draw(self, random: np.random.Generator, split: str, count: int) -> list[str]:
        """Draws lines for a split."""


class Grammar:
    """Distractors by a grammar of one sentence a line.

    Args:
        write: applied to sentences: :func:`separated` for words.
    """

    def __init__(self, write: Write):
        # The fields of a sentence, in the order of the numbers that are drawn for it.
        self._phrases = [PEOPLE_NAMES, PEOPLE_NAMES, PLACE_NAMES, listed(THINGS), listed(QUALITIES), listed(TOPICS)]
        fields = {
            name: f"{{{index}}}" for index, name in enumerate(("who", "whom", "place", "thing", "quality", "topic"))
        }
        self._sentences = [write(line).format(**fields) for line in SENTENCES.strip().splitlines()]
        self.words = words_of([*self._sentences, *(phrase for phrases in self._phrases for phrase in phrases)])

    def draw(self, random: np.random.Generator, split: str, count: int) -> list[str]:
        sizes = [len(self._sentences), *map(len, self._phrases)]
        numbers = random.integers(0, sizes, size=(count, len(sizes)))
        # Somebody else.
        people = len(PEOPLE_NAMES)
        numbers[:, 2] = (numbers[:, 1] + 1 + random.integers(0, people - 1, size=count)) % people
        sentences, phrases = self._sentences, self._phrases
        who, whom, place, thing, quality, topic = phrases
        return [
            sentences[s].format(who[a], whom[b], place[c], thing[d], quality[e], topic[f])
            for s, a, b, c, d, e, f in numbers.tolist()
        ]


class TextLines:
    """Distractors from text: consecutive lines of a part that belongs to the split alone, from a random line on.

    Lines without words and lines that could be an instruction, an arrival or an answer are left out.

    Args:
        path: a file or folder, as given.
        write: applied to lines: :func:`separated` for words.
        folder: where to write the lines that are taken.

    Raises:
        ValueError: the text is not UTF-8, or has too few lines.
    """

    words: set[str] = set()

    def __init__(self, path: str, write: Write, folder: Path):
        self._path = folder / UNPACKED / "distractors"
        slices = unpack({"distractors": find_files([path], text=True)}, folder)["distractors"]
        self._path.parent.mkdir(exist_ok=True)
        # Where each line starts, and where the last one ends.
        offsets, self.left_out = array("q", [0]), 0
        with naming_file_in_errors(self._path), open(self._path, "wb") as file:
            for line in _lines(slices):
                if MARKERS.search(line):
                    self.left_out += 1
                elif line:
                    file.write(write(line).encode() + b"\n")
                    offsets.append(file.tell())
        self._offsets, self.lines = offsets, len(offsets) - 1
        ends = np.rint(np.cumsum([0, *SHARES]) * self.lines).astype(np.int64)
        self._ranges = dict(zip(SPLITS, zip(ends[:-1].tolist(), ends[1:].tolist())))
        if any(first == last for first, last in self._ranges.values()):
            raise ValueError(
                f"--distractors {path}: {self.lines} lines are left of it, too few for three splits; give more text"
            )

    def draw(self, random: np.random.Generator, split: str, count: int) -> list[str]:
        first, last = self._ranges[split]
        start = int(random.integers(first, last))
        lines: list[str] = []
        with open(self._path, "rb") as file:
            while len(lines) < count:
                stop = min(last, start + count - len(lines))
                file.seek(self._offsets[start])
                content = file.read(self._offsets[stop] - self._offsets[start])
                lines += content.decode().split("\n")[:-1]
                start = first
        return lines


def _lines(slices: Sequence[FileSlice]) -> Iterator[str]:
    """The lines of files, with one space between words."""
    for chunk in split_into_chunks(slices, chunk_bytes=CHUNK_BYTES, boundary=at_line):
        for line in normalise_line_ends(chunk.decode(chunk.read())).split("\n"):
            yield " ".join(line.split())


PEOPLE_NAMES, PLACE_NAMES = listed(PEOPLE), listed(PLACES)

# Kinds of events: an arrival with an answer, an instruction. The third is an arrival without an answer.
DONE, GIVEN = range(2)


class Instructions:
    """The generator of the instruction task.

    ``queue`` threads of instructions run side by side. In each, a wait of 0 to ``mean_distractors`` lines comes first,
    then the instruction, then 1 to 2 ``mean_distractors`` - 1 lines, then the arrival and the answer. Both numbers are
    uniform and count distractors alone. As many arrivals without an answer are at random places: of people who have no
    open instruction there.

    Args:
        episodes: number of instructions of train; valid and test have a tenth each.
        queue: the largest number of open instructions.
        mean_distractors: mean number of distractors between an instruction and its arrival.
        seed: of the random numbers.
        write: applied to sentences: :func:`separated` for words.
        distractors: the other lines.

    Raises:
        ValueError: ``queue`` or ``mean_distractors`` is out of range.
    """

    def __init__(
        self,
        *,
        episodes: int,
        queue: int,
        mean_distractors: int,
        seed: int,
        write: Write,
        distractors: Distractors,
    ):
        # So that half of the people are left to meet.
        if queue > len(PEOPLE_NAMES) // 2:
            raise ValueError(f"--queue {queue}: expected a number from 1 to {len(PEOPLE_NAMES) // 2}")
        if mean_distractors > MOST_DISTRACTORS:
            raise ValueError(f"--mean-distractors {mean_distractors}: expected a number from 1 to {MOST_DISTRACTORS}")
        self.episodes = {split: episodes if split == "train" else max(1, episodes // 10) for split in SPLITS}
        self.queue, self.mean_distractors, self.seed = queue, mean_distractors, seed
        self.distractors = distractors
        sentences = self._instruction, self._arrival, self._answer = [write(INSTRUCTION), write(ARRIVAL), write(ANSWER)]
        # All words but those of text that is given.
        self.words = words_of([*sentences, *PEOPLE_NAMES, *PLACE_NAMES]) | distractors.words
        # A thread has an answer every 1.5 means.
        self.part_episodes = queue * max(1, round(PART_LINES / (1.5 * mean_distractors)))

    def num_parts(self, split: str) -> int:
        return -(-self.episodes[split] // self.part_episodes)

    def part(self, split: str, number: int) -> TextPart:
        """Makes a part, which begins and ends without open instructions. It depends on no other part."""
        random = random_numbers(self.seed, split, number)
        episodes = min(self.part_episodes, self.episodes[split] - number * self.part_episodes)
        given, done = self._schedule(random, episodes)
        met = random.integers(0, done.max(), size=episodes, endpoint=True)
        distractors = self.distractors.draw(random, split, int(done.max()))
        # In the order of the kinds. Between the same distractors, what closes an instruction is first, so that the
        # queue stays within its limit.
        times = np.concatenate([done, given, met])
        people = _People(random)
        lines, answers, written = [], [], 0
        for event in np.argsort(times, kind="stable").tolist():
            time = int(times[event])
            lines += distractors[written:time]
            kind, episode, written = event // episodes, event % episodes, time
            if kind == GIVEN:
                lines.append(self._instruction.format(**people.instruct(episode)))
                continue
            target, sender = people.finish(episode) if kind == DONE else (people.meet(), None)
            lines.append(self._arrival.format(place=people.choose(PLACE_NAMES), who=target))
            if sender:
                answers.append(len(lines))
                lines.append(self._answer.format(target=target, sender=sender))
        return TextPart(("\n".join(lines) + "\n").encode(), len(lines), np.array(answers, dtype=np.int64))

    def _schedule(self, random: np.random.Generator, episodes: int) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of distractors before each instruction and before its arrival, int64 [episodes] both."""
        threads = min(self.queue, episodes)
        shape = (-(-episodes // threads), threads)
        waits = random.integers(0, self.mean_distractors, size=shape, endpoint=True)
        distances = random.integers(1, 2 * self.mean_distractors - 1, size=shape, endpoint=True)
        done = np.cumsum(waits + distances, axis=0)
        return (done - distances).ravel()[:episodes], done.ravel()[:episodes]


class _People:
    """The choice of people, and the open instructions of a part: target and sender of each episode."""

    def __init__(self, random: np.random.Generator):
        self._random = random
        self._open: dict[int, tuple[str, str]] = {}
        self._free = list(PEOPLE_NAMES)

    def choose(self, phrases: Sequence[str], *others: str) -> str:
        """One of the phrases, but none of the others."""
        while (phrase := phrases[int(self._random.integers(len(phrases)))]) in others:
            pass
        return phrase

    def instruct(self, episode: int) -> dict[str, str]:
        """Opens an instruction for somebody who has none, and returns who is named in it."""
        target = self.choose(self._free)
        sender = self.choose(PEOPLE_NAMES, target)
        self._free.remove(target)
        self._open[episode] = (target, sender)
        return {"target": target, "sender": sender, "speaker": self.choose(PEOPLE_NAMES, target, sender)}

    def finish(self, episode: int) -> tuple[str, str]:
        """Closes an instruction, and returns its target and sender."""
        target, sender = self._open.pop(episode)
        self._free.append(target)
        return target, sender

    def meet(self) -> str:
        """Somebody for whom no instruction is open."""
        return self.choose(self._free)


class InstructionParser(Parser):
    """The parser of this script."""

    def verify(self, args: argparse.Namespace) -> None:
        """See :meth:`Parser.verify`. Verifies the answers, too."""
        answers = list(verify_answers(args.verify))
        super().verify(args)
        print("\n".join(answers))


def build_parser() -> InstructionParser:
    parser = InstructionParser(prog="instruction.py", description=__doc__)
    parser.add_argument(
        "--level", choices=("words", "subword"), default="words", help="what a symbol is (default: words)"
    )
    parser.add_argument(
        "--episodes",
        type=positive,
        default=EPISODES,
        metavar="N",
        help=f"number of instructions of train; valid and test have a tenth each (default: {EPISODES})",
    )
    parser.add_argument(
        "--mean-distractors",
        type=positive,
        default=MEAN_DISTRACTORS,
        metavar="N",
        help="mean number of other sequences between an instruction and its answer, uniform from 1 to 2 N - 1 "
        f"(default: {MEAN_DISTRACTORS}, the paper's)",
    )
    parser.add_argument(
        "--queue",
        type=positive,
        default=QUEUE,
        metavar="N",
        help=f"the largest number of instructions that are open at a time (default: {QUEUE})",
    )
    parser.add_argument(
        "--distractors",
        metavar="PATH",
        help="text for the other sequences, a line each: a file, or a folder of which every file is taken (default: "
        "sentences of a grammar)",
    )
    parser.add_argument("--seed", type=natural, default=1, metavar="N", help="of the random numbers (default: 1)")
    parser.add_argument(
        "--vocab-size", type=positive, metavar="N", help=f"pieces of the subword model (default: {VOCAB_SIZE})"
    )
    parser.add_argument(
        "--threshold",
        type=natural,
        default=0,
        metavar="N",
        help="words seen less often in train become <unk> (default: 0)",
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
    if not args.dest:
        raise ValueError("--dest is missing; give the folder to make")
    if args.level != "words" and args.threshold:
        raise ValueError("--threshold is for words; leave it out")
    if args.level != "subword" and args.vocab_size:
        raise ValueError("--vocab-size is for --level subword; leave it out")
    if args.distractors and Path(args.dest).resolve().is_relative_to(Path(args.distractors).resolve()):
        raise ValueError(f"--dest {args.dest}: lies in {args.distractors}, which is read; choose a folder outside")
    check_replaceable(args.dest, mark=FILE_NAME, force=args.force)


def make(args: argparse.Namespace) -> None:
    check(args)
    write = separated if args.level == "words" else str
    parameters = {name: vars(args)[name] for name in ("episodes", "mean_distractors", "queue", "seed")}
    lines: dict[str, np.ndarray] = {}

    def make_job(folder: Path) -> Job:
        source: dict[str, Any] = {
            "corpus": "instruction",
            "verified": f"generated with seed {args.seed}",
            **parameters,
            "distractors": None,
            "numpy": np.__version__,
        }
        distractors: Distractors = Grammar(write)
        if args.distractors:
            distractors = found = TextLines(args.distractors, write, folder)
            source["distractors"] = {
                "name": Path(args.distractors).resolve().name,
                "lines": found.lines,
                "left_out": found.left_out,
            }
        instructions = Instructions(**parameters, write=write, distractors=distractors)
        num_parts = {split: instructions.num_parts(split) for split in SPLITS}
        with Progress(sum(num_parts.values()), unit="part") as progress:
            texts, answers = write_texts(
                instructions.part, num_parts, folder, workers=args.workers, on_progress=progress.advance
            )
        lines.update(answers)
        tokenizer = make_tokenizer(
            args.level, {"vocab_size": args.vocab_size or VOCAB_SIZE} if args.level == "subword" else {}
        )
        # A small train split may lack words that answers of the others need.
        fixed = sorted(instructions.words) if args.level == "words" else ()
        return Job(splits=texts, tokenizer=tokenizer, threshold=args.threshold, fixed_symbols=fixed, source=source)

    def add(folder: Path, manifest: Manifest) -> Manifest:
        return write_answers(folder, manifest, lines)

    make_data(args, make_job, add=add)


def main(arguments: list[str] | None = None) -> None:
    build_parser().run(make, arguments)


if __name__ == "__main__":
    main()
