"""The floating-point operations that a block needs, which limit its speed.

Size legend: B rows, T tokens of a block, D width, F width of the feed-forward network, V vocabulary, P reach of
positions.
"""

from subjects import VOCABULARY, Ours, Shape


def operations(shape: Shape, subject: Ours, *, training: bool) -> float:
    """Returns the number of multiplications and additions of the block that the model has just read.

    Counted: the projections, feed-forward networks and the output layer; scores and weighted sums of the memories that
    are alive and of the block's own past; position scores of those that lie within P steps. In training, the
    projections of what is remembered (scoring keeps their results) and twice as much for backward as for forward,
    except that memories want no gradient of their own. Not counted: what an implementation may compute again, softmax,
    norms, spans.
    """
    tokens, block = shape.rows * shape.block, shape.block
    dense = (
        tokens * shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.ffn) + tokens * shape.width * VOCABULARY
    )
    # P is the block, so all of a query's own past lies within it.
    pairs = shape.layers * shape.rows * block * (block - 1) / 2
    pairs += sum((block + 1 - layer.age).clamp(0, block).sum().item() for layer in subject.before.layers)
    positions = shape.width * pairs
    attention = sum(2 * shape.width * report.memory_size.sum().item() for report in subject.out.reports)
    multiplications = dense + positions + attention
    if training:
        remembered = sum(2 * shape.width**2 * sum(layer.counts) for layer in subject.before.layers)
        multiplications = 3 * multiplications + 2 * remembered
    return 2.0 * multiplications
