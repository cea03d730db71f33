"""Sampling of the next token."""

import math

import torch
from torch import Tensor


class Sampler:
    """Samples a token from log-probabilities.

    Args:
        greedy: always take the most likely token.
        temperature: divides the log-probabilities; below 1 likely tokens are sampled more often.
        top_k: sample from the k most likely tokens only.
        top_p: sample from the smallest set of most likely tokens with at least this share of the probability.
        seed: seed of the random numbers; None for PyTorch's global generator.
    Raises:
        ValueError: if a value is out of its range, or is given together with ``greedy``.
    """

    def __init__(
        self,
        *,
        greedy: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ):
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature divides log-probabilities: expected a finite number more than 0, got {temperature}; see "
                "greedy"
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is a number of tokens: expected at least 1, got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p is a share of the probability: expected 0 < top_p <= 1, got {top_p}")
        if greedy and (temperature != 1 or top_k is not None or top_p is not None or seed is not None):
            raise ValueError("greedy takes the most likely token: leave temperature, top_k, top_p and seed out")
        self.greedy = greedy
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        # On the CPU, a seed gives the same numbers whatever device the model runs on.
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, log_probs: Tensor) -> int:
        """[V] -> the index of a token; never one whose log-probability is minus infinity."""
        if self.greedy:
            return int(log_probs.argmax())
        scores, tokens = (log_probs.cpu().double() / self.temperature).sort(descending=True, stable=True)
        probs = scores[: self.top_k].softmax(dim=0)
        if self.top_p is not None:
            before = probs.cumsum(dim=0) - probs
            probs = probs.masked_fill(before >= self.top_p, 0)
        return int(tokens[torch.multinomial(probs, 1, generator=self._generator)])
