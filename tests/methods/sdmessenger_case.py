"""What the conformance suite should know of S&D Messenger."""

RANK_TOLERANCE = None
"""Labelled samples attend to the unlabelled ones of their own rank, and what is pasted is drawn per rank."""

OVERFIT = {"iterations": 200, "batch_size": 2, "lr": 0.01}
