"""Cached backbones: a full pass that fills caches, and passes that reuse them.

Between full passes, an AR iteration computes only the tokens that became known since the last pass,
and the tokens that it predicts. For all other tokens and the buffer it uses cached keys and values.
It computes the conditional half only, and adds to it the difference of the two guidance halves at
the last full pass. This is an approximation without training, similar to LazyMAR (ICCV 2025).
"""
