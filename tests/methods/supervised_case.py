"""What the conformance suite should know of the reference method."""

OVERFIT = {"lr": 0.01}
