"""The verbs of the command line; see ``medplan/cli.py`` for their flags."""
