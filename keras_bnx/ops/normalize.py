"""Step 2: centering, scale and offset."""


def normalize(
    inputs,
    weights=None,
    *,
    axes,
    arithmetic,
    shift,
    mean,
    variance,
    epsilon,
    gamma,
    beta,
    share=None,
    sum_replicas=None,
):
    """Computes `(x - shift - mean) * gamma / sqrt(variance + epsilon) + beta`.

    Subtracting first keeps the digits that `x * a + b` would lose where the
    mean is large: at mean/std = 1e5 the float32 error is 1e-7, not 2e-2.

    Args:
        inputs: floating-point tensor, `(batch, ..., channels, ...)`.
        weights: `None`, or a tensor that broadcasts against `inputs`. All
            elements are normalized; those of weight zero that aren't finite
            give `beta`, and no gradient.
        axes: tuple of the channel axes, ascending.
        arithmetic: the `Arithmetic` that does it, the one of the moments.
        shift, mean: tensors of the shape of the channel axes; the mean is their
            sum, and `mean` may be the number 0.
        variance: tensor of that shape.
        epsilon: float, added to the variance.
        gamma, beta: tensors of the shape of the channel axes, or `None`.
        share: `None` where the statistics don't depend on the inputs. Otherwise
            a tensor of that shape, `1 / n` where they are the batch's,
            0 where not: the gradient runs through them.
        sum_replicas: `None`, or what sums a tensor over the replicas whose elements
            the statistics count: the gradient runs through all of them.

    Returns:
        Tensor of the shape and dtype of `inputs`.
    """
    return arithmetic.normalize(
        inputs,
        weights,
        axes=axes,
        shift=shift,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        gamma=gamma,
        beta=beta,
        share=share,
        sum_replicas=sum_replicas,
    )
