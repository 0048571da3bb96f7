"""One file per method, found by its name. Methods do not import each other."""
