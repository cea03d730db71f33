"""A gradient for every parameter in every update, whichever words a batch holds."""

from torch import Tensor

from fairseq_expire.modules import AdaptiveSoftmax


def with_every_gradient(features: Tensor, adaptive_softmax: AdaptiveSoftmax) -> Tensor:
    """Returns the same features, made to depend on every parameter of the softmax, with a gradient of zero.

    The clusters that no target of a batch falls into are not used for its loss. PyTorch's DistributedDataParallel stops
    at a parameter without a gradient. An optimizer treats one without a gradient differently from one whose gradient is
    zero, which is what it gets as soon as another process or micro-batch uses it.

    Args:
        features: [B, T, D], the output of the last layer.
        adaptive_softmax: the output layer of the model.
    """
    # Empty slices rather than a product with zero, which infinity would turn into NaN.
    nothing = [tail(features[:0, 0]).sum() for tail in adaptive_softmax.tail]
    # The loss always uses the head, but outside of the forward pass that DistributedDataParallel watches.
    nothing.append(adaptive_softmax.head(features[:0, 0]).sum())
    return features + sum(nothing)
