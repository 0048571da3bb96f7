"""Preprocess a dataset."""

from medplan.preprocess.prepare import prepare

__all__ = ["prepare"]
