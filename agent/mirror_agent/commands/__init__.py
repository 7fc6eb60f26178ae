"""Floor 6: one file for each command of the command line; cli.py lists them."""
