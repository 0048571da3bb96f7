"""Evaluation of predictions against references, and the report. Imports neither torch nor matplotlib."""
