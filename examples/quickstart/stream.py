"""A language model that learns to forget, without fairseq: it reads the bytes of this file again and again.

python examples/quickstart/stream.py
"""

import math
from pathlib import Path

import torch
from torch import nn

from fairseq_expire.modules import ExpireSpan, MemoryTransformer


class ByteModel(nn.Module):
    """Predicts the next byte with an Expire-Span transformer."""

    def __init__(self, width=64):
        super().__init__()
        self.embed, self.output = nn.Embedding(256, width), nn.Linear(width, 256)
        self.stack = MemoryTransformer(
            embed_dim=width, num_heads=4, ffn_dim=4 * width, num_layers=2, position_range=32,
            policy=lambda: ExpireSpan(embed_dim=width, max_span=1024, ramp=16, span_init=64),
        )  # fmt: skip

    def forward(self, tokens, memory=None):
        out = self.stack(self.embed(tokens), memory)
        return self.output(out.hidden), out.memory, sum(report.penalty.sum() for report in out.reports)


def train(model, text, *, block=32, epochs=20, expire_loss_weight=1e-5, log=print):
    """Reads ``text`` block by block, with a memory from block to block. Returns the bits per byte of each epoch."""
    tokens, bits = torch.frombuffer(bytearray(text), dtype=torch.uint8).long(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        memory, total = None, 0.0
        for start in range(0, len(tokens) - 1, block):
            inputs, targets = tokens[start:-1][:block], tokens[start + 1 :][:block]
            logits, memory, penalty = model(inputs.unsqueeze(0), memory)
            loss = nn.functional.cross_entropy(logits[0], targets, reduction="sum")
            optimizer.zero_grad()
            ((loss + expire_loss_weight * penalty) / len(targets)).backward()
            optimizer.step()
            total += loss.item()
        bits.append(total / (len(tokens) - 1) / math.log(2))
        log(f"epoch {epoch + 1}: {bits[-1]:.3f} bits per byte, {memory.sizes} memories, {memory.nbytes:,} bytes held")
    return bits


if __name__ == "__main__":
    torch.manual_seed(0)
    train(ByteModel(), Path(__file__).read_bytes())
