import typer

from . import command

if __name__ == "__main__":  # worker processes import this module, too
    typer.run(command)
