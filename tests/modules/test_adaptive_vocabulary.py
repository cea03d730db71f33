"""Adaptive input and softmax against fairseq's, with fairseq's weights."""

import pytest
import torch
import torch.nn.functional as F
from fairseq.modules import AdaptiveInput as TheirInput
from fairseq.modules import AdaptiveSoftmax as TheirSoftmax

from fairseq_expire.modules.adaptive_vocabulary import AdaptiveInput, AdaptiveSoftmax, Clusters

WORDS, WIDTH, CLUSTERS = 50, 16, Clusters((10, 25), 2.0)


def pair(clusters, tied, tie_projections):
    """Embedding and softmax, ours and fairseq's, with the same weights."""
    torch.manual_seed(0)
    cutoff = list(clusters.cutoffs)
    theirs = TheirInput(WORDS, 1, WIDTH, clusters.factor, WIDTH, cutoff)
    their_softmax = TheirSoftmax(
        WORDS,
        WIDTH,
        cutoff,
        0.0,
        factor=clusters.factor,
        adaptive_inputs=theirs if tied else None,
        tie_proj=tie_projections,
    )
    ours = AdaptiveInput(vocab_size=WORDS, pad=1, embed_dim=WIDTH, clusters=clusters)
    our_softmax = AdaptiveSoftmax(
        vocab_size=WORDS,
        embed_dim=WIDTH,
        clusters=clusters,
        tied=ours if tied else None,
        tie_projections=tie_projections,
    )
    ours.load_state_dict(theirs.state_dict())
    our_softmax.load_state_dict(their_softmax.state_dict())
    return torch.nn.ModuleList([ours, our_softmax]), torch.nn.ModuleList([theirs, their_softmax])


def read(models, tokens, target):
    """A loss that uses both as a language model does, and its gradients by name."""
    embed, softmax = models
    outputs, targets = softmax(embed(tokens).tanh(), target)
    loss = sum(F.cross_entropy(o, t, reduction="sum") for o, t in zip(outputs, targets) if o is not None)
    loss.backward()
    return loss, {name: p.grad for name, p in models.named_parameters()}


@pytest.mark.parametrize(
    "clusters", [CLUSTERS, Clusters((10, 25, 50), 2.0), Clusters((50,))], ids=["", "to-the-end", "one"]
)
@pytest.mark.parametrize("tied, tie_projections", [(False, False), (True, False), (True, True)])
def test_as_fairseqs(clusters, tied, tie_projections):
    ours, theirs = pair(clusters, tied, tie_projections)
    tokens, target = torch.randint(2, WORDS, (3, 20)), torch.randint(2, WORDS, (3, 20))
    our_loss, our_gradients = read(ours, tokens, target)
    their_loss, their_gradients = read(theirs, tokens, target)
    torch.testing.assert_close(our_loss, their_loss)
    torch.testing.assert_close(our_gradients, their_gradients)
    states = torch.randn(3, 20, WIDTH)
    all_words = theirs[1].get_log_prob(states, None)
    torch.testing.assert_close(ours[1].get_log_prob(states), all_words)
    asked = ours[1].get_log_prob(states, target).gather(2, target.unsqueeze(-1))
    torch.testing.assert_close(asked, all_words.gather(2, target.unsqueeze(-1)))


def test_clusters_that_do_not_occur():
    ours, theirs = pair(CLUSTERS, False, False)
    tokens, target = torch.randint(2, 10, (2, 5)), torch.randint(2, 10, (2, 5))
    our_loss, our_gradients = read(ours, tokens, target)
    their_loss, their_gradients = read(theirs, tokens, target)
    torch.testing.assert_close(our_loss, their_loss)
    for name, gradient in our_gradients.items():
        if name.startswith("0."):
            # Of all words, so that no process of several lacks some.
            expected = torch.zeros_like(gradient) if their_gradients[name] is None else their_gradients[name]
            torch.testing.assert_close(gradient, expected)
        else:
            assert (gradient is None) == (their_gradients[name] is None)


def test_padding_is_zero_and_words_of_rarer_clusters_are_not():
    torch.manual_seed(0)
    embed = AdaptiveInput(vocab_size=WORDS, pad=1, embed_dim=WIDTH, clusters=CLUSTERS)
    norms = embed(torch.arange(WORDS)).norm(dim=-1)
    assert norms[1] == 0 and (norms[torch.arange(WORDS) != 1] > 0).all()


@pytest.mark.parametrize("cutoffs", [(), (10, 5), (10, 10), (2, 10), (10, 51)])
def test_cutoffs_that_do_not_fit(cutoffs):
    with pytest.raises(ValueError, match=r"rising word ranks from 4 .* to 50"):
        Clusters(cutoffs).ends(WORDS)
