"""Benchmarks: how fast slicevote is, as ratios against the engines it builds on, measured within one run.

Machines differ and are noisy; a ratio of two medians of the same run travels. Every case runs both sides in turn.
"""
