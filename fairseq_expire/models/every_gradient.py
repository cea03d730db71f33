"""A gradient for every parameter in every update, whatever a batch or a criterion leaves out."""

from collections.abc import Sequence

from torch import Tensor

from fairseq_expire.modules import LayerReport
from fairseq_expire.modules.adaptive_vocabulary import AdaptiveSoftmax


def with_every_gradient(
    features: Tensor, reports: Sequence[LayerReport], adaptive_softmax: AdaptiveSoftmax | None
) -> Tensor:
    """The same features, on which every parameter depends, some of them by nothing.

    PyTorch's DistributedDataParallel stops at a parameter without a gradient, and an optimiser does not treat it as one
    whose gradient is zero, which it is as soon as another process or group of rows uses it. Such are the bands of large
    vocabularies that no token of a batch falls into, and a learned compression, unless the criterion adds its loss.

    Args:
        features: [B, T, D], the output of the last layer.
        reports: of the layers.
        adaptive_softmax: of the model, if it has one.
    """
    # None of it, not zero times it: a loss that overflowed must not get into the features.
    nothing = [report.reconstruction[:0].sum() for report in reports if report.reconstruction is not None]
    if adaptive_softmax is not None:
        nothing += [band(features[:0, 0]).sum() for band in adaptive_softmax.tail]
        # Always used, but only outside of the forward pass that is watched.
        nothing.append(adaptive_softmax.head(features[:0, 0]).sum())
    return features + sum(nothing) if nothing else features
