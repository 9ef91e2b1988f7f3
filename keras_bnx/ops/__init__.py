"""The three steps of batch normalization, without state.

`moments` takes the statistics of a batch, `normalize` applies them, `moving`
averages them over time; `renorm` corrects the second step, `weights` reads a
mask. Tensors of one number per channel have shape `(channels,)` here.
"""
