"""The one generic trainer."""
