"""`python -m magmerge`: the command line."""

from magmerge.cli import program

if __name__ == "__main__":
    program()
