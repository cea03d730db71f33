"""The memory as a value, against plain lists of what it should hold."""

import copy
import io
import pickle
from typing import NamedTuple

import torch
from fuzzing import fuzz
from hypothesis import strategies as st

from fairseq_expire.modules import AdaptiveSpan, Compressive, ExpireSpan, FixedSpan, LayerMemory, Memory
from fairseq_expire.modules.attention import loops as naive
from fairseq_expire.modules.memory import EMPTY_AGE, SLOT_MULTIPLE

WIDTH = 2


class Token(NamedTuple):
    """A token that a row remembers; ``number`` tells it from all others, and gives its fields."""

    number: int
    age: int
    min_distance: int = 1


def fields_of(numbers, names):
    """[..., N] -> the fields of a memory [..., N, W]."""
    inputs = torch.stack([numbers.double(), -numbers.double()], dim=-1)
    fields = {"inputs": inputs, "keys": inputs, "values": 10 * inputs, "spans": (numbers % 7).double().unsqueeze(-1)}
    return {name: fields[name] for name in names}


def held_by(memory) -> list[list[Token]]:
    """Returns the tokens of each row of a memory; checks everything that belongs to a token."""
    rows = []
    names = [name for name in memory.fields if name != "min_distance"]
    numbers = memory.fields[names[0]][..., 0]
    distances = torch.ones_like(memory.age) if memory.min_distance is None else memory.min_distance
    for row, count in enumerate(memory.counts):
        used = memory.occupied[row]
        assert not used[: used.numel() - count].any(), "only the last slots are in use"
        for name, expected in fields_of(numbers[row, used], names).items():
            assert torch.equal(memory.fields[name][row, used], expected)
        values = [x[row, used].tolist() for x in (numbers, memory.age, distances)]
        rows.append([Token(int(number), age, distance) for number, age, distance in zip(*values)])
        assert all(token.age <= memory.oldest for token in rows[-1])
    in_use = [numbers[row, memory.slots - count :] for row, count in enumerate(memory.counts)]
    assert torch.equal(memory.flatten(numbers), torch.cat(in_use))
    return rows


class Example(NamedTuple):
    """A memory, what it should hold, how many tokens it has read, and its tensors as they were."""

    memory: LayerMemory
    rows: list[list[Token]]
    tokens_read: tuple[int, ...]
    before: dict

    @classmethod
    def of(cls, memory, rows, tokens_read):
        before = {name: x.clone() for name, x in Memory((memory,)).state_dict().items()}
        return cls(memory, rows, tokens_read, before)

    def check(self):
        assert held_by(self.memory) == self.rows
        assert self.memory.tokens_read == self.tokens_read
        after = Memory((self.memory,)).state_dict()
        assert after.keys() == self.before.keys() and all(
            torch.equal(after[name], x) for name, x in self.before.items()
        )


def saved_and_loaded(memory):
    file = io.BytesIO()
    torch.save(Memory((memory,)).state_dict(), file)
    file.seek(0)
    return Memory.from_state_dict(torch.load(file, weights_only=True)).layers[0]


COPIES = {
    "state": saved_and_loaded,
    "deepcopy": copy.deepcopy,
    "pickle": lambda memory: pickle.loads(pickle.dumps(memory)),
    "moved": lambda memory: memory.to(dtype=torch.float64),
    "detached": LayerMemory.detach,
}
STEPS = ["read", "read", "read", "keep", "keep", "reorder", "join", "advance", "begin", "compress", *COPIES]


class Steps:
    """Does to memories, and to the lists, what is drawn."""

    def __init__(self, data, rows, names):
        self.data = data
        # The fields that are stored.
        self.names = names
        self.next = 1
        empty = LayerMemory.from_tensors(age=torch.zeros(rows, 0, dtype=torch.int64), **self.new(rows, 0)[1])
        self.all = [Example.of(empty, [[] for _ in range(rows)], (0,) * rows)]

    def draw(self, strategy, name):
        return self.data.draw(strategy, name)

    def new(self, rows, count):
        """[rows, count] numbers that no token has yet, and the fields of these."""
        numbers = torch.arange(self.next, self.next + rows * count).view(rows, count)
        self.next += rows * count
        return numbers, fields_of(numbers, self.names)

    def step(self):
        # Any memory that ever was, not only the last: several may grow from one.
        example = self.all[self.draw(st.integers(0, len(self.all) - 1), "memory")]
        how = self.draw(st.sampled_from(STEPS), "step")
        made = COPIES[how](example.memory) if how in COPIES else None
        done = Example.of(made, example.rows, example.tokens_read) if made is not None else getattr(self, how)(example)
        self.all.append(done)

    def read(self, example):
        """A block, and the memory of both as the next block sees it."""
        block = self.draw(st.integers(1, 5), "block")
        padded = [self.draw(st.integers(0, block - 1), "padding") for _ in example.rows]
        numbers, fields = self.new(len(example.rows), block)
        padding = torch.tensor([[t >= block - count for t in range(block)] for count in padded])
        if not any(padded):
            padding = None
        memory = example.memory.append(example.memory.block_age(block, padding), **fields)
        rows = [
            [*row, *(Token(n, -t) for t, n in enumerate(own) if t < block - count)]
            for row, own, count in zip(example.rows, numbers.tolist(), padded)
        ]
        assert held_by(memory) == rows
        return self.older(Example.of(memory, rows, example.tokens_read), block)

    def advance(self, example):
        return self.older(example, self.draw(st.integers(0, 20), "steps"))

    def begin(self, example):
        """A document in some rows; deletion is another step."""
        numbers = [self.draw(st.integers(0, 3), "tokens of a document") for _ in example.rows]
        tokens_read = tuple(new if new else old for new, old in zip(numbers, example.tokens_read))
        return Example.of(example.memory.begin_documents(numbers), example.rows, tokens_read)

    def older(self, example, steps):
        rows = [[token._replace(age=token.age + steps) for token in row] for row in example.rows]
        return Example.of(example.memory.advance(steps), rows, tuple(read + steps for read in example.tokens_read))

    def keep(self, example):
        """Some of the tokens; as the stack does it after a block, or with room of a given size."""
        memory = example.memory
        rows = [[token for token in row if self.draw(st.booleans(), "keep")] for row in example.rows]
        wanted = [{token.number for token in row} for row in rows]
        numbers = memory.fields[self.names[0]][..., 0].tolist()
        keep = torch.tensor(
            [[int(n) in some for n in row] for some, row in zip(wanted, numbers)], dtype=torch.bool
        ).view(memory.age.shape)
        keep &= memory.occupied
        counts = tuple(len(row) for row in rows)
        oldest = max((token.age for row in rows for token in row), default=0)
        block = self.draw(st.integers(0, 4), "room")
        if "keys" in self.names and block:
            memory = memory.prune(keep, counts, oldest=oldest, block=block)
            bound = -(-max(counts) // SLOT_MULTIPLE) * SLOT_MULTIPLE + block
            assert memory.slots + block <= memory.buffer.capacity <= bound
        else:
            memory = memory.compact(keep, counts, oldest=oldest, room=block)
            assert memory.counts == counts and memory.slots == max(counts)
        return Example.of(memory, rows, example.tokens_read)

    def reorder(self, example):
        picked = self.draw(st.lists(st.integers(0, len(example.rows) - 1), min_size=1, max_size=4), "rows")
        rows = [example.rows[row] for row in picked]
        tokens_read = tuple(example.tokens_read[row] for row in picked)
        return Example.of(example.memory.reorder(torch.tensor(picked)), rows, tokens_read)

    def join(self, example):
        """The rows of two memories."""
        other = self.draw(st.sampled_from(self.all), "other")
        memory = LayerMemory.cat([example.memory, other.memory])
        return Example.of(memory, [*example.rows, *other.rows], (*example.tokens_read, *other.tokens_read))

    def compress(self, example):
        """Memories that are seen late behind the others; in some rows fewer than in others."""
        groups = self.draw(st.integers(0, 2), "groups")
        missing = [self.draw(st.integers(0, groups), "missing") for _ in example.rows]
        numbers, fields = self.new(len(example.rows), groups)
        age = torch.tensor([[EMPTY_AGE if g < m else 10 - g for g in range(groups)] for m in missing])
        age = age.view(numbers.shape).long()
        memory = example.memory.append(age, **fields, min_distance=torch.full_like(age, 7))
        rows = [
            [*row, *(Token(n, 10 - g, 7) for g, n in enumerate(own) if g >= m)]
            for row, own, m in zip(example.rows, numbers.tolist(), missing)
        ]
        # By itself it has no room and counts again what it holds.
        alone = LayerMemory.from_tensors(age=memory.age, tokens_read=memory.tokens_read, **memory.fields)
        return Example.of(alone, rows, example.tokens_read)


def test_what_a_memory_holds(long):
    """After any steps from any earlier memory; and no step changes a memory that was there before."""

    def at(data, rows, names, steps):
        doing = Steps(data, rows, names)
        for _ in range(steps):
            doing.step()
        for example in doing.all:
            example.check()

    fuzz(
        at,
        examples=300,
        long=long,
        data=st.data(),
        rows=st.integers(1, 3),
        names=st.sampled_from([["inputs"], ["keys", "values", "spans"], ["keys", "values", "spans", "inputs"]]),
        steps=st.integers(1, 12),
    )


def ever_seen(policy, span, age, compressed):
    """Returns True if a query at a distance of ``age`` steps or later sees a memory with one of its heads."""
    for distance in range(age, age + 80):
        late = not compressed or distance > policy.max_span
        near = policy.max_distance is None or distance <= policy.max_distance
        if late and near and any(naive.soft_mask(head, distance, policy.ramp) > 0 for head in span):
            return True
    return False


@torch.no_grad()
def test_what_is_retained_is_what_will_be_seen(long):
    def at(kind, span, ramp, limit, rate, size, scoring, seed):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        if kind == "compressive" and limit is not None:
            # Under a limit among the states, compressed memories are kept for some steps for nothing.
            limit += max(span, rate)
        policy = (
            {
                "expire": lambda: ExpireSpan(
                    embed_dim=4, max_span=span, ramp=ramp, span_init=span / 2, span_limit=limit
                ),
                "fixed": lambda: FixedSpan(max_span=span, span_limit=limit),
                "adaptive": lambda: AdaptiveSpan(num_heads=2, max_span=span, ramp=ramp, span_limit=limit),
                "compressive": lambda: Compressive(
                    max_span=max(span, rate), compressed_size=size, rate=rate, span_limit=limit
                ),
            }[kind]()
            .double()
            .train(not scoring)
        )
        for parameter in policy.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
        states = torch.randn(2, 12, 4, dtype=torch.float64, generator=generator)
        age = torch.stack(
            [torch.randperm(60, generator=generator)[:12].sort(descending=True).values + 1 for _ in range(2)]
        )
        age[0, :2] = EMPTY_AGE
        distances, compressed = None, torch.zeros(2, 12, dtype=torch.bool)
        if kind == "compressive":
            compressed = torch.rand(2, 12, generator=generator) < 0.5
            distances = 1 + compressed * policy.max_span
        spans = policy.spans(states)
        memory = LayerMemory.from_tensors(age=age, inputs=states, min_distance=distances)
        keep = policy.retain(policy.visibility(spans, memory, block=0))
        for row in range(2):
            for slot in range(12):
                steps, late = age[row, slot].item(), compressed[row, slot].item()
                span = spans.new_full((1,), policy.max_age) if late else spans[row, slot]
                expected = steps < EMPTY_AGE and ever_seen(policy, span, steps, late)
                assert keep[row, slot].item() == expected, (row, slot, steps, span)

    fuzz(
        at, examples=150, long=long, kind=st.sampled_from(["expire", "fixed", "adaptive", "compressive"]),
        span=st.integers(2, 40), ramp=st.integers(1, 9), limit=st.none() | st.integers(1, 50), rate=st.integers(2, 4),
        size=st.integers(1, 5), scoring=st.booleans(), seed=st.integers(0, 2**20),
    )  # fmt: skip
