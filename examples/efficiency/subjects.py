"""The models that the benchmarks measure: embedding, stack and output layer, with a memory in its steady state.

Size legend: B rows, T tokens of a block, D width, L longest span, R ramp.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_expire.modules import ExpireSpan, FixedSpan, Memory, MemoryPolicy, MemoryTransformer

VOCABULARY = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its spans.

    Args:
        rows, layers, width, heads, ffn, block: B, number of layers, D, number of heads, width of the FFN, T.
        span: mean span.
        spread: standard deviation of the logits of spans from token to token.
        rows_spread: step by which the logits of spans differ from row to row.
        max_span, ramp: L, R.
    """

    rows: int
    span: int
    spread: float = 0.5
    rows_spread: float = 0.0
    max_span: int = 16384
    ramp: int = 128
    layers: int = 2
    width: int = 512
    heads: int = 8
    ffn: int = 2048
    block: int = 512

    @property
    def blocks_to_fill(self) -> int:
        """Number of blocks after which a memory has about its final size."""
        return 4 + 4 * self.span // self.block

    def smaller(self, divisor: int) -> "Shape":
        """Returns a shape with widths, blocks, spans and ramp divided, for a quick look."""
        parts = ("span", "max_span", "ramp", "width", "ffn", "block")
        return replace(self, **{part: getattr(self, part) // divisor for part in parts})

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.rows} row{'s' * (self.rows > 1)}, mean span {self.span}" + ", spread widely" * (
            self.rows_spread > 0
        )


def text(shape: Shape, blocks: int, seed: int = 1) -> Tensor:
    """Returns random tokens, [B, blocks * T + 1]; each row has its own alphabet if rows differ in their spans."""
    generator = torch.Generator().manual_seed(seed)
    length = blocks * shape.block + 1
    if not shape.rows_spread:
        return torch.randint(VOCABULARY, (shape.rows, length), generator=generator)
    size = VOCABULARY // shape.rows
    first = torch.arange(shape.rows).unsqueeze(1) * size
    return first + torch.randint(size, (shape.rows, length), generator=generator)


def blocks(shape: Shape, count: int, seed: int = 1) -> list[Tensor]:
    """Returns blocks of tokens with the one after them, [B, T + 1] each."""
    tokens = text(shape, count, seed)
    return [tokens[:, n * shape.block : (n + 1) * shape.block + 1] for n in range(count)]


class Subject:
    """A model that reads a stream; ``train`` and ``score`` read one block and keep the memory."""

    name: str

    def restart(self) -> None:
        """Empties the memory."""
        raise NotImplementedError

    def train(self, tokens: Tensor) -> None:
        """Makes a forward and a backward pass over a block, [B, T + 1]."""
        raise NotImplementedError

    def score(self, tokens: Tensor) -> Tensor:
        """Returns log-probabilities [B, T, V] of every token after the first of a block, [B, T + 1]."""
        raise NotImplementedError

    def alive(self) -> list[float]:
        """Returns for each layer the mean number of states of a row that the first query of the next block can see."""
        raise NotImplementedError

    def slots(self) -> list[int]:
        """Returns for each layer the number of slots of a row."""
        raise NotImplementedError


class Ours(Subject, nn.Module):
    """A model with a memory policy of this package."""

    def __init__(self, name: str, shape: Shape, policy: Callable[[], MemoryPolicy], seed: int = 0):
        nn.Module.__init__(self)
        torch.manual_seed(seed)
        self.name = name
        self.embed = nn.Embedding(VOCABULARY, shape.width)
        self.stack = MemoryTransformer(
            embed_dim=shape.width,
            num_heads=shape.heads,
            ffn_dim=shape.ffn,
            num_layers=shape.layers,
            position_range=shape.block,
            policy=policy,
        )
        self.output = nn.Linear(shape.width, VOCABULARY)
        self.restart()

    def read(self, tokens: Tensor) -> Tensor:
        """[B, T + 1] -> [B, T, V]; keeps the memory before and after, and the reports of the layers."""
        self.before = self.memory
        self.out = self.stack(self.embed(tokens[:, :-1]), self.memory)
        self.memory = self.out.memory
        return self.output(self.out.hidden)

    def restart(self) -> None:
        self.memory: Memory | None = None
        self.before = self.out = None

    def train(self, tokens: Tensor) -> None:
        nn.Module.train(self)
        self.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.read(tokens).flatten(0, 1), tokens[:, 1:].flatten())
        penalty = sum(report.penalty.mean() for report in self.out.reports if report.penalty is not None)
        (loss + 1e-6 * penalty / (tokens.size(1) - 1)).backward()

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Tensor:
        if self.training:
            nn.Module.train(self, False)
        return self.read(tokens).log_softmax(dim=-1)

    @torch.no_grad()
    def alive(self) -> list[float]:
        alive = []
        for layer, memory in zip(self.stack.layers, self.memory.layers):
            spans = layer.policy.spans(memory.inputs) if memory.spans is None else memory.spans
            seen = memory.age < spans.amax(dim=-1) + layer.policy.ramp
            alive.append(seen.sum(dim=1).float().mean().item())
        return alive

    def slots(self) -> list[int]:
        return list(self.memory.sizes)


def expire_span(shape: Shape) -> Ours:
    """Returns an Expire-Span model with random span predictors, whose biases give the mean span of the shape."""

    def policy() -> ExpireSpan:
        made = ExpireSpan(embed_dim=shape.width, max_span=shape.max_span, ramp=shape.ramp, span_init=shape.span)
        nn.init.normal_(made.predictor.weight, std=shape.spread * shape.width**-0.5)
        return made

    model = Ours("expire_span", shape, policy)
    if shape.rows_spread:
        # Moves the alphabet of each row along the weight of the first predictor.
        direction = model.stack.layers[0].policy.predictor.weight.detach()[0]
        row = torch.arange(VOCABULARY) // (VOCABULARY // shape.rows)
        moved = (row - (shape.rows - 1) / 2) * shape.rows_spread
        with torch.no_grad():
            model.embed.weight += moved.unsqueeze(1) * direction / direction.square().sum()
            # States of later layers still depend on the row in this direction.
            for layer in model.stack.layers[1:]:
                layer.policy.predictor.weight.copy_(direction.unsqueeze(0))
    _set_biases(model, shape)
    return model


@torch.no_grad()
def _set_biases(model: Ours, shape: Shape) -> None:
    """Sets the bias of each predictor, from the first layer on, by bisection."""
    nn.Module.train(model, False)
    for layer in model.stack.layers:
        seen = []
        hook = layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model.restart()
        for block in blocks(shape, 3):
            model.read(block)
        hook.remove()
        logits = torch.cat(seen, dim=1) @ layer.policy.predictor.weight[0]
        low, high = -30.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            mean = (shape.max_span * (logits + middle).sigmoid()).mean()
            low, high = (middle, high) if mean < shape.span else (low, middle)
        layer.policy.predictor.bias.fill_(low)
    model.restart()


def fixed_span(shape: Shape) -> Ours:
    """Returns a model that remembers the last ``span`` states, the mean number of Expire-Span."""
    return Ours("fixed_span", shape, lambda: FixedSpan(max_span=shape.span))


# Names of a layer's weights in the published implementation and here.
PEER_NAMES = {
    "attn.attn.expire_span.span_predictor": "policy.predictor",
    "attn.proj_query": "query_proj",
    "attn.proj_key": "key_proj",
    "attn.proj_val": "value_proj",
    "attn.proj_out": "out_proj",
    "ff.fc1": "fc1",
    "ff.fc2": "fc2",
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
}


class TransformerSequential(Subject):
    """The published PyTorch implementation, with the weights of a model of ours.

    Args:
        checkout: path of a checkout of facebookresearch/transformer-sequential.
        shape: the sizes.
        ours: the model whose weights it gets.
    """

    name = "transformer-sequential"

    def __init__(self, checkout: str, shape: Shape, ours: Ours):
        sys.path.insert(0, checkout)
        try:
            published = importlib.import_module("models.expire_span")
        except ImportError as error:
            raise SystemExit(f"--peer: no transformer-sequential checkout at {checkout} ({error})") from None
        finally:
            sys.path.remove(checkout)
        self.shape = shape
        self.model = published.ExpireSpan(
            argparse.Namespace(
                nlayers=shape.layers,
                hid_sz=shape.width,
                inner_hid_sz=shape.ffn,
                nheads=shape.heads,
                head_dim=shape.width // shape.heads,
                mem_sz=shape.block,
                attn_lim=shape.max_span,
                dropout=0.0,
                pre_norm=False,
                vocab_sz=VOCABULARY,
                expire_span=True,
                expire_span_loss=1e-6,
                expire_span_ramp=shape.ramp,
                expire_span_init_percentage=0.1,
                expire_span_noisy=False,
                expire_span_pre_div=1.0,
                expire_span_layerdrop=0.0,
                device="cpu",
            )
        )
        theirs = self.model.state_dict()
        weights = ours.state_dict()
        for name in theirs:
            if name.endswith("mask_causal"):
                continue
            if name.endswith("key_pe"):
                theirs[name] = weights["stack.position"].flip(0).t().unsqueeze(0)
            elif name.startswith("layers."):
                _, number, rest = name.split(".", 2)
                module, kind = rest.rsplit(".", 1)
                theirs[name] = weights[f"stack.layers.{number}.{PEER_NAMES[module]}.{kind}"]
            else:
                theirs[name] = weights[
                    {"in_emb": "embed", "out.out_emb": "output"}[name.rsplit(".", 1)[0]] + "." + name.rsplit(".", 1)[1]
                ]
        self.model.load_state_dict(theirs)
        self.restart()

    def restart(self) -> None:
        self.memory = self.model.init_hid_cache(self.shape.rows)

    def _read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        out, memory, penalty = self.model(tokens[:, :-1], self.memory)
        self.memory = [tensor.detach() for tensor in memory]
        return out, penalty

    def train(self, tokens: Tensor) -> None:
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        out, penalty = self._read(tokens)
        (F.nll_loss(out.flatten(0, 1), tokens[:, 1:].flatten()) + penalty.mean()).backward()

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Tensor:
        self.model.eval()
        return self._read(tokens)[0]

    @torch.no_grad()
    def alive(self) -> list[float]:
        self.model.eval()
        alive = []
        for layer, states, age in zip(self.model.layers, self.memory, self.memory[self.shape.layers :]):
            left = layer.attn.attn.expire_span(states.new_empty(1, 1, 1), states, age)[2] + self.shape.ramp
            alive.append((left > 0).sum(dim=1).float().mean().item())
        return alive

    def slots(self) -> list[int]:
        return [states.size(1) for states in self.memory[: self.shape.layers]]


SUBJECTS: dict[str, Callable[[Shape, str | None], Subject]] = {
    "expire_span": lambda shape, checkout: expire_span(shape),
    "fixed_span": lambda shape, checkout: fixed_span(shape),
    "transformer-sequential": lambda shape, checkout: TransformerSequential(checkout, shape, expire_span(shape)),
}
