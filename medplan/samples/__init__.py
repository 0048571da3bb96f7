"""Preprocessed cases, the patches drawn from them, and their augmentation."""
