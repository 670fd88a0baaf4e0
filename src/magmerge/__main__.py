"""`python -m magmerge`: the command line."""

from magmerge.cli import program

program()
