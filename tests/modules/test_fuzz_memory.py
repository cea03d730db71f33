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
from fairseq_expire.modules.layer_memory import EMPTY_AGE, SLACK
from fairseq_expire.modules.rows import joined
from fairseq_expire.modules.transformer import _kept

WIDTH = 2


class Token(NamedTuple):
    """A token that a row remembers; ``number`` tells it from all others, and gives its state and its span."""

    number: int
    age: int
    compressed: bool = False


def states_of(numbers):
    return torch.stack([numbers.double(), -numbers.double()], dim=-1)


def spans_of(numbers):
    return (numbers % 7).double().unsqueeze(-1)


def held_by(memory) -> list[list[Token]]:
    """What the rows of a memory hold, with everything that belongs to a token checked."""
    rows = []
    slots = memory.compressed_slots()
    for row, count in enumerate(memory.held):
        used = memory.occupied[row]
        assert not used[: used.numel() - count].any(), "only the youngest slots are in use"
        numbers = memory.states[row, used, 0]
        assert torch.equal(memory.states[row, used], states_of(numbers))
        if memory.spans is not None:
            assert torch.equal(memory.spans[row, used], spans_of(numbers))
        ages = memory.age[row, used].tolist()
        assert all(age <= memory.oldest for age in ages)
        rows.append([Token(int(n), a, c) for n, a, c in zip(numbers.tolist(), ages, slots[row, used].tolist())])
    packed = [memory.states[row, memory.age.size(1) - count :] for row, count in enumerate(memory.held)]
    assert torch.equal(memory.flatten(), torch.cat(packed))
    return rows


class Kept(NamedTuple):
    """A memory, what it should hold, how many tokens it has read, and its tensors as they were."""

    memory: LayerMemory
    rows: list[list[Token]]
    read: int
    before: dict

    @classmethod
    def of(cls, memory, rows, read):
        return cls(memory, rows, read, {name: x.clone() for name, x in Memory((memory,)).state_dict().items()})

    def check(self):
        assert held_by(self.memory) == self.rows
        assert self.memory.read == self.read
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
STEPS = ["read", "read", "read", "keep", "keep", "reorder", "join", "age", "compress", *COPIES]


class Steps:
    """Does to memories, and to the lists, what is drawn."""

    def __init__(self, data, rows, keys):
        self.data = data
        # Whether keys and values are stored, which have spans, or a layer's inputs.
        self.keys = keys
        self.next = 1
        empty = LayerMemory.empty(rows, WIDTH, torch.zeros(1, dtype=torch.float64))
        if keys:
            empty = LayerMemory(empty.states, empty.age, spans=torch.zeros(rows, 0, 1, dtype=torch.float64))
        self.all = [Kept.of(empty, [[] for _ in range(rows)], 0)]

    def draw(self, strategy, name):
        return self.data.draw(strategy, name)

    def new(self, rows, count):
        """[rows, count] numbers that no token has yet."""
        numbers = torch.arange(self.next, self.next + rows * count).view(rows, count)
        self.next += rows * count
        return numbers, states_of(numbers), spans_of(numbers) if self.keys else None

    def step(self):
        # Any memory that ever was, not only the last: several may grow from one.
        kept = self.all[self.draw(st.integers(0, len(self.all) - 1), "memory")]
        how = self.draw(st.sampled_from(STEPS), "step")
        made = COPIES[how](kept.memory) if how in COPIES else None
        done = Kept.of(made, kept.rows, kept.read) if made is not None else getattr(self, how)(kept)
        self.all.append(done)

    def read(self, kept):
        """A block, and the memory of both as the next block sees it."""
        block = self.draw(st.integers(1, 5), "block")
        padded = [self.draw(st.integers(0, block - 1), "padding") for _ in kept.rows]
        numbers, states, spans = self.new(len(kept.rows), block)
        padding = torch.tensor([[t >= block - count for t in range(block)] for count in padded])
        if not any(padded):
            padding = None
        extended = kept.memory.extended(states, spans, padding)
        rows = [
            [*row, *(Token(n, -t) for t, n in enumerate(own) if t < block - count)]
            for row, own, count in zip(kept.rows, numbers.tolist(), padded)
        ]
        assert held_by(extended) == rows
        return self.older(Kept.of(extended, rows, kept.read), block)

    def age(self, kept):
        return self.older(kept, self.draw(st.integers(0, 20), "steps"))

    def older(self, kept, steps):
        rows = [[token._replace(age=token.age + steps) for token in row] for row in kept.rows]
        return Kept.of(kept.memory.advance(steps), rows, kept.read + steps)

    def keep(self, kept):
        """Some of the tokens; as the stack does it after a block, or into room of a given size."""
        rows = [[token for token in row if self.draw(st.booleans(), "keep")] for row in kept.rows]
        wanted = [{token.number for token in row} for row in rows]
        keep = torch.tensor(
            [[int(n) in some for n in numbers] for some, numbers in zip(wanted, kept.memory.states[..., 0].tolist())],
            dtype=torch.bool,
        ).view(kept.memory.age.shape)
        keep &= kept.memory.occupied
        counts = tuple(len(row) for row in rows)
        oldest = max((token.age for row in rows for token in row), default=0)
        block = self.draw(st.integers(0, 4), "room")
        if self.keys and block:
            memory = _kept(kept.memory, keep, counts, oldest=oldest, block=block)
            bound = -(-max(counts) // SLACK) * SLACK + block
            assert memory.age.size(1) + block <= memory.room.data.size(1) <= bound
        else:
            memory = kept.memory.compact(keep, counts, oldest=oldest, room=block)
            assert memory.held == counts and memory.age.size(1) == max(counts)
        return Kept.of(memory, rows, kept.read)

    def reorder(self, kept):
        picked = self.draw(st.lists(st.integers(0, len(kept.rows) - 1), min_size=1, max_size=4), "rows")
        return Kept.of(kept.memory.reorder(torch.tensor(picked)), [kept.rows[row] for row in picked], kept.read)

    def join(self, kept):
        """The rows of two memories that have read as much."""
        other = self.draw(st.sampled_from([other for other in self.all if other.read == kept.read]), "other")
        return Kept.of(joined([kept.memory, other.memory]), [*kept.rows, *other.rows], kept.read)

    def compress(self, kept):
        """Compressed memories behind the others; in some rows fewer than in others."""
        groups = self.draw(st.integers(0, 2), "groups")
        missing = [self.draw(st.integers(0, groups), "missing") for _ in kept.rows]
        numbers, states, spans = self.new(len(kept.rows), groups)
        age = torch.tensor([[EMPTY_AGE if g < m else 10 - g for g in range(groups)] for m in missing]).view(
            numbers.shape
        )
        memory = kept.memory.with_compressed(states, age.long(), spans)
        rows = [
            [*row, *(Token(n, 10 - g, True) for g, n in enumerate(own) if g >= m)]
            for row, own, m in zip(kept.rows, numbers.tolist(), missing)
        ]
        # By itself it has no room and counts again what it holds.
        alone = LayerMemory(memory.states, memory.age, memory.spans, memory.compressed, read=memory.read)
        return Kept.of(alone, rows, kept.read)


def test_what_a_memory_holds(long):
    """After any steps from any earlier memory; and no step changes a memory that was there before."""

    def at(data, rows, keys, steps):
        doing = Steps(data, rows, keys)
        for _ in range(steps):
            doing.step()
        for kept in doing.all:
            kept.check()

    fuzz(
        at,
        examples=300,
        long=long,
        data=st.data(),
        rows=st.integers(1, 3),
        keys=st.booleans(),
        steps=st.integers(1, 12),
    )


def ever_seen(policy, span, age, compressed):
    """Whether a query from now on, to which the memory is ``age`` steps back and more, sees it with one of its heads."""
    for distance in range(age, age + 80):
        late = not compressed or distance > policy.max_span
        near = policy.longest is None or distance <= policy.longest
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
        spans, slots = policy.spans(states), None
        if policy.compresses:
            slots = torch.rand(2, 12, generator=generator) < 0.5
            spans = spans.masked_fill(slots.unsqueeze(-1), policy.compressed_span)
        _, keep = policy.retain(LayerMemory(states, age, compressed=slots), spans)
        for row in range(2):
            for slot in range(12):
                steps = age[row, slot].item()
                stands_for_several = slots is not None and bool(slots[row, slot])
                expected = steps < EMPTY_AGE and ever_seen(policy, spans[row, slot], steps, stands_for_several)
                assert keep[row, slot].item() == expected, (row, slot, steps, spans[row, slot])

    fuzz(
        at, examples=150, long=long, kind=st.sampled_from(["expire", "fixed", "adaptive", "compressive"]),
        span=st.integers(2, 40), ramp=st.integers(1, 9), limit=st.none() | st.integers(1, 50), rate=st.integers(2, 4),
        size=st.integers(1, 5), scoring=st.booleans(), seed=st.integers(0, 2**20),
    )  # fmt: skip
