"""The evaluation: the paper's tables and figures from a folder of volumes, and what goes past them.

`run.evaluate` does it; `command.evaluate` is its command line. It drives the engine's own parts (intake, runtime,
archive, sampling, voting, late interaction) and knows nothing of gRPC.
"""
