"""Losses, optimisers and other parts of learning that methods share."""
