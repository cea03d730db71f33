"""Any stack that reads any text in any blocks, against a reader of the whole row that keeps everything."""

from typing import NamedTuple

import numpy as np
import reader
import torch
from fuzzing import fuzz
from hypothesis import strategies as st

from fairseq_expire.modules import AdaptiveSpan, Compressive, ExpireSpan, FixedSpan, Memory, MemoryTransformer
from fairseq_expire.modules.memory import EMPTY_AGE, SLOT_MULTIPLE
from fairseq_expire.modules.policies.compressive import POOLINGS


class Model(NamedTuple):
    """A model: L, R, K, D / K, layers, P, and for the compressive memory C, c and its pooling."""

    kind: str
    span: int
    ramp: int
    heads: int
    width: int
    layers: int
    positions: int
    pre_norm: bool
    limit: int | None
    size: int
    rate: int
    pooling: str
    seed: int

    def policy(self):
        limit, span, width = self.limit, self.span, self.heads * self.width
        if self.kind == "expire":
            return ExpireSpan(embed_dim=width, max_span=span, ramp=self.ramp, span_init=span / 3, span_limit=limit)
        if self.kind == "adaptive":
            return AdaptiveSpan(num_heads=self.heads, max_span=span, ramp=self.ramp, span_limit=limit)
        if self.kind == "compressive":
            compressing = {"compressed_size": self.size, "rate": self.rate, "pooling": self.pooling}
            return Compressive(max_span=span, **compressing, span_limit=limit)
        return FixedSpan(max_span=span, span_limit=limit)

    def stack(self):
        torch.manual_seed(self.seed)
        stack = MemoryTransformer(
            embed_dim=self.heads * self.width,
            num_heads=self.heads,
            ffn_dim=5,
            num_layers=self.layers,
            position_range=self.positions,
            policy=self.policy,
            pre_norm=self.pre_norm,
        ).double()
        with torch.no_grad():
            for name, parameter in stack.named_parameters():
                if name.endswith("policy.ratio"):
                    parameter.uniform_(0, 1)
                elif "policy" in name:
                    parameter.normal_(std=0.5)
        return stack

    def read_at_once(self, stack, hidden, limited, starts):
        """[B, N, D], the output of the reader; a limit counts only while scoring.

        Args:
            starts: [B, N] bool, where documents begin.
        """
        limit = self.limit if limited else None
        mask, compressed = {
            "expire": lambda: (reader.expire_span_mask(max_span=self.span, ramp=self.ramp, limit=limit), None),
            "fixed": lambda: (reader.fixed_span_mask(max_span=self.span, limit=limit), None),
            "adaptive": lambda: (reader.adaptive_span_mask(max_span=self.span, ramp=self.ramp, limit=limit), None),
            "compressive": lambda: (
                reader.fixed_span_mask(max_span=self.span, limit=limit),
                reader.compressed(
                    max_span=self.span, size=self.size, rate=self.rate, pooling=self.pooling, limit=limit
                ),
            ),
        }[self.kind]()
        state = {name: tensor.double().numpy() for name, tensor in stack.state_dict().items()}
        rows = [
            reader.read(
                state,
                row.double().numpy(),
                heads=self.heads,
                pre_norm=self.pre_norm,
                **reader.in_documents(own.numpy(), mask, compressed),
            )
            for row, own in zip(hidden, starts)
        ]
        return torch.from_numpy(np.stack(rows))


MODELS = st.builds(
    Model,
    kind=st.sampled_from(["expire", "fixed", "adaptive", "compressive"]),
    # At least the largest rate.
    span=st.integers(4, 20),
    ramp=st.integers(1, 8),
    heads=st.integers(1, 3),
    width=st.integers(1, 3),
    layers=st.integers(1, 2),
    positions=st.integers(1, 30),
    pre_norm=st.booleans(),
    limit=st.none() | st.integers(1, 24),
    size=st.integers(1, 5),
    rate=st.integers(2, 4),
    pooling=st.sampled_from(POOLINGS),
    seed=st.integers(0, 2**20),
)
# The lengths of the blocks that make up the text.
BLOCKS = st.lists(st.integers(1, 9), min_size=1, max_size=7)


# The share of tokens that begin a document.
BORDERS = st.sampled_from([0, 0, 0.05, 0.3, 1])


def begun(model, rows, length, borders):
    """[B, N] bool, True where a document begins."""
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(model.seed)) < borders


def text(model, rows, length):
    generator = torch.Generator().manual_seed(model.seed)
    return torch.randn(rows, length, model.heads * model.width, dtype=torch.float64, generator=generator)


@torch.no_grad()
def test_any_blocks_are_the_whole_text(long):
    """With a memory of inputs, of keys and values, or of both in turn, that is saved and reordered on the way.

    With padding behind the text and without, with deletion and without, with borders between documents and without.
    """

    def at(model, blocks, rows, training, gradients, scoring_from, saved, deleting, padded, borders, dtype):
        stack, hidden = model.stack(), text(model, rows, sum(blocks))
        limited = not training
        # The first row lacks the last tokens of the last block.
        missing = min(padded, blocks[-1] - 1)
        stack.to(dtype)
        starts = begun(model, rows, sum(blocks), borders)
        if not deleting:
            for layer in stack.layers:
                layer.policy.retain = lambda visibility: visibility.age < EMPTY_AGE
        expected = model.read_at_once(stack, hidden, limited, starts)
        stack.train(training)
        memory, outputs, sizes, penalties = None, [], [], []
        parts = zip(hidden.to(dtype).split(blocks, dim=1), starts.split(blocks, dim=1))
        for number, (block, begins) in enumerate(parts):
            if training and number >= scoring_from and model.limit is None:
                stack.eval()
            padding = None
            if missing and number == len(blocks) - 1:
                padding = torch.zeros(rows, block.size(1), dtype=torch.bool)
                padding[0, block.size(1) - missing :] = True
            before = None if memory is None else {name: x.clone() for name, x in memory.state_dict().items()}
            # Scoring remembers keys and values only without gradients.
            with torch.set_grad_enabled(gradients):
                out = stack(block, memory, padding=padding, starts=begins if borders else None)
            if memory is not None:
                assert all(torch.equal(memory.state_dict()[name], x) for name, x in before.items())
            memory = out.memory
            if number == saved:
                memory = Memory.from_state_dict(memory.state_dict()).reorder(torch.arange(rows))
            outputs.append(out.hidden.detach())
            sizes.append([report.memory_size for report in out.reports])
            penalties.append([report.penalty for report in out.reports])
        actual = torch.cat(outputs, dim=1).double()
        kept = torch.ones(actual.shape[:2], dtype=torch.bool)
        kept[0, actual.size(1) - missing :] = False
        tolerance = {"atol": 1e-9, "rtol": 1e-7} if dtype == torch.float64 else {"atol": 2e-4, "rtol": 1e-3}
        torch.testing.assert_close(actual[kept], expected[kept], **tolerance)
        if dtype == torch.float64 and not missing:
            whole = stack(hidden, starts=starts)
            for number, report in enumerate(whole.reports):
                assert torch.equal(torch.cat([part[number] for part in sizes], dim=1), report.memory_size)
                if report.penalty is not None:
                    torch.testing.assert_close(sum(part[number] for part in penalties), report.penalty)

    fuzz(
        at, examples=250, long=long, model=MODELS, blocks=BLOCKS, rows=st.integers(1, 3), training=st.booleans(),
        gradients=st.booleans(), scoring_from=st.integers(0, 8), saved=st.integers(0, 8), deleting=st.booleans(),
        padded=st.sampled_from([0, 0, 1, 3]), borders=BORDERS,
        dtype=st.sampled_from([torch.float64, torch.float64, torch.float32]),
    )  # fmt: skip


def alive(policy, stored):
    """Counts the memories of each row that later queries can see; compressed ones are stored before they are seen."""
    spans = stored.spans.amax(dim=-1)
    if stored.min_distance is not None:
        spans = spans.masked_fill(stored.min_distance > 1, policy.max_age)
    seen = stored.age < spans + policy.ramp
    if policy.max_distance is not None:
        seen &= stored.age <= policy.max_distance
    return seen.sum(dim=1).tolist()


@torch.no_grad()
def test_storage_is_bounded(long):
    """The bound: the memories that the longest row can still see, rounded up, and one block; of one document."""

    def at(model, blocks, rows, spread, borders):
        model = model._replace(span=model.span * spread, limit=None)
        stack, hidden, memory = model.stack().eval(), text(model, rows, sum(blocks)), None
        starts, since = begun(model, rows, sum(blocks), borders), [0] * rows
        for block, begins in zip(hidden.split(blocks, dim=1), starts.split(blocks, dim=1)):
            memory = stack(block, memory, starts=begins).memory
            for token in begins.T.tolist():
                since = [1 if begin else steps + 1 for begin, steps in zip(token, since)]
            for layer, stored in zip(stack.layers, memory.layers):
                assert stored.tokens_read == tuple(since)
                for age, occupied, steps in zip(stored.age, stored.occupied, since):
                    assert (age[occupied] <= steps).all()
                bound = -(-max(alive(layer.policy, stored)) // SLOT_MULTIPLE) * SLOT_MULTIPLE + block.size(1)
                assert stored.slots + block.size(1) <= stored.buffer.capacity <= bound
                tensors = [*stored.buffer.tensors.values(), stored.age]
                assert stored.nbytes == sum(x.numel() * x.element_size() for x in tensors)

    fuzz(
        at, examples=60, long=long, model=MODELS, blocks=st.lists(st.integers(1, 60), min_size=1, max_size=9),
        rows=st.integers(1, 3), spread=st.sampled_from([1, 5, 20]), borders=BORDERS,
    )  # fmt: skip
