"""The pieces of a training step, without state.

`weights` reads a mask, `virtual` splits a batch, `statistics` judges, chooses and
merges what was taken of the parts, `replicas` says who takes part in the sums, `renorm`
corrects gamma and beta. The sums and the elementwise pass are the backends'.
"""
