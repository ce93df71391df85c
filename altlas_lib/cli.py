"""The command line: `altlas check | run`."""

import json
import logging
import sys
from typing import Annotated

import typer

app = typer.Typer(
    help="Decide, prove and pay for GPU acceleration of Python code.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def check(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say whether this machine can run the book, what is missing, and how to get it.

    Exit code 0: it can, on what it has. 1: it cannot.
    """
    from . import environment

    findings = environment.check_environment()
    ready = environment.is_ready(findings)
    if as_json:
        print(json.dumps({"ready": ready, "findings": [finding.model_dump() for finding in findings]}, indent=1))
    else:
        print(environment.format_findings(findings))
    raise typer.Exit(0 if ready else 1)


@app.command()
def run(
    parameters: Annotated[str | None, typer.Option(help="quick, full, or a YAML file.", show_default="quick")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only this chapter (its number); may be repeated.")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="Run this chapter and those after it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run: the latest, or --run NAME.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="Set a parameter; may be repeated.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="The folder under outputs/.", show_default="as the parameters")
    ] = None,
) -> None:
    """Execute the notebooks into outputs/<run>/ and print where the report lies."""
    from . import runner

    try:
        runner.run_book(
            parameters=parameters,
            assignments=assignments or (),
            only=only or (),
            from_=from_,
            resume=resume,
            name=name,
            tell=lambda line: print(line, flush=True),
        )
    except KeyboardInterrupt:  # typer would say "Aborted!"
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # tasks that waited for the kernel have nobody to tell
        print("interrupted; `altlas run --resume` goes on after the last finished chapter", file=sys.stderr)
        raise typer.Exit(130) from None


def main() -> None:
    """Run a command; what the user can mend is one message and exit code 1, not a traceback."""
    from .book import RunError
    from .runner import ChapterFailure

    try:
        app()
    except (RunError, ChapterFailure, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
