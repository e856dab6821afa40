"""Evaluation: the paper's tables and figures, measured on labelled volumes.

`evaluation.evaluate` runs one; `cli` is the command `slicevote-evaluate`. The package drives the engine in process
(its embedder, archive, indexes, sampling, voting and re-ranking) and does not use gRPC.
"""
