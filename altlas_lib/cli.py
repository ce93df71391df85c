"""The command line: `altlas check | new | run | lab | profile | calibrate | plan | optimize | compare | serve`."""

import contextlib
import enum
import json
import logging
import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from . import extras, paths, serving

app = typer.Typer(
    help="Decide, prove and pay for GPU acceleration of Python code.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Precision(enum.Enum):
    """Of `altlas plan --amp`."""

    FLOAT16 = "fp16"
    BFLOAT16 = "bf16"


@contextlib.contextmanager
def _said_plainly(*errors: type[Exception], interrupted: str = "interrupted") -> Iterator[None]:
    """What the user can mend is one message and exit code 1, Ctrl-C one and 130; no traceback."""
    try:
        yield
    except errors as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:  # typer would say "Aborted!"
        print(interrupted, file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    dxdiag: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Say it of the Windows machine whose DxDiag.txt this is instead.")
    ] = None,
    gpu_only: Annotated[bool, typer.Option("--gpu-only", help="With --dxdiag: of its GPUs and their driver only.")] = False,
) -> None:
    """Say whether this machine can run the book, what is missing, and how to get it.

    Exit code 0: it can, on what it has (with --dxdiag: it suits CUDA). 1: it cannot.
    """
    from . import environment

    with _said_plainly(ValueError):
        if gpu_only and not dxdiag:
            raise ValueError("--gpu-only goes with --dxdiag FILE: add that, or leave it out")
        if dxdiag:
            findings = environment.findings_from_dxdiag(environment.read_dxdiag(dxdiag), gpu_only=gpu_only)
        else:
            findings = environment.check_environment()
    ready = environment.is_ready(findings)
    if as_json:
        print(json.dumps({"ready": ready, "findings": [finding.model_dump() for finding in findings]}, indent=1))
    else:
        print(environment.format_findings(findings))
    raise typer.Exit(0 if ready else 1)


@app.command()
def new(folder: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)]) -> None:
    """Copy the book to a folder of your own: notebooks, parameters and samples, to edit there. `altlas run` there runs it."""
    print(f"made {paths.copy_book(folder)}{os.sep}; now: cd {shlex.quote(str(folder))} && altlas run")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Open JupyterLab on the book of this folder, or where there is none on a new copy of it; JupyterLab's options follow."""
    from jupyterlab.labapp import main as open_lab

    if paths.is_shipped():
        study = Path("altlas_study")
        os.chdir(study if study.exists() else paths.copy_book(study))
    open_lab([f"--notebook-dir={paths.notebooks_dir()}", *context.args])


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

    asked = {"parameters": parameters, "assignments": assignments or (), "only": only or (), "from_": from_}
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # tasks that wait for an interrupted kernel have nobody to tell
    interrupted = "interrupted; `altlas run --resume` goes on after the last finished chapter"
    with _said_plainly(runner.RunError, runner.ChapterFailure, interrupted=interrupted):
        runner.run_book(**asked, resume=resume, name=name, tell=lambda line: print(line, flush=True))


@app.command(context_settings={"allow_interspersed_args": False})
def profile(
    target: Annotated[
        str,
        typer.Argument(
            help="module:function, path/to/script.py, or with --requests an ASGI application module:app.",
            show_default=False,
        ),
    ],
    argv: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="Arguments of the script.")] = None,
    setup: Annotated[
        str | None, typer.Option(metavar="M:F", help="module:function whose value is the target's argument; not timed.")
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Option("--arg", metavar="NAME=JSON", help="An argument by name; may be repeated.")
    ] = None,
    requests: Annotated[
        Path | None, typer.Option(metavar="FILE", help='JSON Lines: {"method": "POST", "path": "/items", "json": ...}.')
    ] = None,
    gpu: Annotated[str, typer.Option(help="The GPU of the catalogue to project onto, such as T4, A10, L4, H200.")] = "T4",
    time_limit_s: Annotated[
        float, typer.Option("--time-limit", min=1, metavar="S", help="Seconds for all runs together.")
    ] = 120.0,
    sampling_s: Annotated[float, typer.Option("--for", min=0.1, metavar="S", help="Seconds to sample.")] = 2.0,
    alternatives: Annotated[
        list[str] | None,
        typer.Option("--alternative", metavar="M:F", help="Another function to measure on the same input; may be repeated."),
    ] = None,
    same_answer: Annotated[
        str | None,
        typer.Option(
            metavar="M:F",
            help="A function of both answers that says whether they agree.",
            show_default="numbers within a tolerance, the rest equal",
        ),
    ] = None,
    check_port: Annotated[
        bool, typer.Option("--check-port", help="Say what CuPy has of it, and where a port would copy to the host.")
    ] = False,
    least_saving_s: Annotated[
        float,
        typer.Option("--least-saving", min=0, metavar="S", help="Seconds that a change must save in one run."),
    ] = 0.01,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the whole profile here.")] = None,
) -> None:
    """Say where a program's time goes, and the cheapest way to make it fast. Options go before the target.

    The program runs many times, and the profile says how many: it must be safe to run repeatedly. Its standard input is empty.
    Only your own functions are listed: what they call in installed packages counts as theirs. Exit code 0: profiled. 1: it
    could not be, and the message says why.
    """
    from . import devices, profiling
    from .paths import write_atomically
    from .profiling.show.terminal import format_profile
    from .results import EnvironmentResult

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, as Ctrl-C does
    if json_file and not json_file.resolve().parent.is_dir():
        print(f"--json {json_file}: no folder {json_file.resolve().parent}; make it first", file=sys.stderr)
        raise typer.Exit(1)
    if Path("/dev/stdin").is_fifo():
        print("note: what is piped in is not passed on, the program reads an empty standard input", file=sys.stderr)
    interrupted = "interrupted; what was started has been ended, nothing was written"
    with _said_plainly(profiling.ProfilingError, ValueError, interrupted=interrupted):
        spec, environment = devices.find_gpu(gpu), EnvironmentResult.latest()
        profiled = profiling.profile(
            target,
            setup=setup,
            arguments=dict(map(_argument, arguments or ())),
            argv=argv or (),
            requests=requests,
            alternatives=alternatives or (),
            same_answer=same_answer,
            check_port=check_port,
            sampling_s=sampling_s,
            time_limit_s=time_limit_s,
        )
        ceilings = environment and environment.ceilings
        candidates = profiling.rank_candidates([profiled], gpu=spec, ceilings=ceilings, least_saving_s=least_saving_s)
        if json_file:
            write_atomically(json_file, profiled.model_dump_json(indent=1) + "\n")
    print(format_profile(profiled, candidates, check_port=check_port))


@app.command()
def calibrate() -> None:
    """Measure on this machine's GPU what the projections rest on, in two minutes; later projections onto it prefer that.

    Exit code 0: measured and kept. 1: there is no GPU that CuPy sees.
    """
    from .profiling.project.calibrate import calibrate as measure

    with _said_plainly(RuntimeError, ValueError):
        found = measure()
        path = found.save()
    for name, (factor, spread) in found.classes.items():
        print(f"{name}: {factor:.2f} times the projected time, runs within a factor of {spread:.2f}")
    print(*(f"left out: {text}" for text in found.left_out), f"kept in {path}", sep="\n")


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="A preset (reference, option1, option2, quick), module:function that builds a Keras model or a PyTorch module "
            "(alone or as (module, (x, y), loss, optimizer)), or a .keras file; "
            "of a large language model a .gguf file, or a folder with config.json and safetensors."
        ),
    ] = "reference",
    gpu: Annotated[
        str,
        typer.Option(help='The GPU, such as T4, A10, L4, "A100 80GB SXM"; "all": a preset on each, so which is enough.'),
    ] = "T4",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Plan this micro-batch only.", show_default="a preset's mitigations, else the largest that fits"
        ),
    ] = None,
    input_shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME=D,D", help="An input's shape without the batch, where it is unknown; repeatable."
        ),
    ] = None,
    amp: Annotated[Precision | None, typer.Option(help="Mixed precision.", show_default="the model's own")] = None,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="Of a PyTorch module: keep the inputs of repeated blocks only.")
    ] = False,
    n_devices: Annotated[int, typer.Option("--devices", min=1, help="GPUs of one machine that share --batch-size.")] = 1,
    time_limit_s: Annotated[float, typer.Option("--time-limit", min=1, metavar="S", help="Seconds for compiling.")] = 480.0,
    context: Annotated[int, typer.Option(min=1, help="Of a language model: tokens of each stream.")] = 8192,
    batch: Annotated[int, typer.Option(min=1, help="Of a language model: streams at a time.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plans as JSON.")] = False,
) -> None:
    """Say whether a training fits a GPU that need not be here, asking its compiler. Nothing is trained.

    Of a preset it prints what each mitigation of running out of memory brings; these answers come with the library. Compiling
    a model of your own takes a minute for a batch size. Exit code 0: planned. 1: it could not be, and the message says why.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, as Ctrl-C does
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # nothing of TensorFlow's own is of interest here
    sys.path.insert(0, os.getcwd())  # where the user's modules are
    if model.endswith(".gguf") or Path(model).is_dir():
        return _plan_language_model(model, gpu, context, batch, as_json)
    from . import tables, training
    from .results import Remedy

    with _said_plainly(training.PlanError, ValueError, interrupted="interrupted; nothing was planned"):
        shapes = dict(map(_shape, input_shapes or ()))
        how = {"input_shapes": shapes, "time_limit_s": time_limit_s}
        if amp:
            how["dtype_policy"] = {"fp16": "mixed_float16", "bf16": "mixed_bfloat16"}[amp.value]
        if checkpoint:
            how["recompute"] = ("*",)
        is_preset = ":" not in model and not model.endswith(".keras")
        if is_preset and gpu == "all":
            found = training.gpu_table(model)
            rows = training.gpu_rows(found)
            explained = ["Of what was compiled, smallest memory first; more by python -m altlas_lib.training.plan"]
        else:
            if n_devices > 1:
                plan = training.plan_devices(model, gpu, n_devices, batch_size=batch_size or 0, **how)
                found = [Remedy(name=f"{model} on {n_devices} devices", plan=plan)]
            elif is_preset and batch_size is None:
                found = training.mitigation_table(model, gpu, time_limit_s=time_limit_s)
            else:
                plan = training.plan_memory(model, gpu, batch_size=batch_size, **how) if batch_size else None
                plan = plan or training.largest_batch(model, gpu, **how)
                if plan is None:
                    raise training.PlanError(f"not even one sample of {model} fits {gpu}; what it needs: --batch-size 1")
                largest = None if batch_size else plan.configuration["batch_size"]
                found = [Remedy(name=model, plan=plan, largest_batch=largest)]
                if batch_size and plan.peak.basis == "projected":
                    found = training.module_mitigations(model, gpu, plan, **how)
            rows, explained = training.mitigation_rows(found), training.explanation(found)
        if as_json:
            print(json.dumps([each.model_dump(mode="json") for each in found], indent=1))
        else:
            text = [textwrap.fill(line, 120, subsequent_indent="  ") for line in explained]
            print("\n".join([tables.show(rows).text(120), "", *text]))


def _plan_language_model(model: str, gpu: str, context: int, batch: int, as_json: bool) -> None:
    from . import inference

    if model.endswith(".gguf"):
        import gguf  # noqa: F401 (a child process reads the file; that its reader is missing is said here)
    with _said_plainly(inference.InferenceError, ValueError):
        found = inference.plan_model(inference.read_model(model), gpu, context=context, batch=batch)
    print(found.model_dump_json(indent=1) if as_json else inference.describe_plan(found))


@app.command()
def optimize(
    model: Annotated[str, typer.Argument(help="A .keras or .onnx file, or module:function that builds a Keras model.")],
    gpu: Annotated[str, typer.Option(help="The GPU of the catalogue to build and compile for.")] = "T4",
    calibration: Annotated[
        Path | None,
        typer.Option(help="A .npz file: an array of the training part for each input by its name.", show_default="no 8 bits"),
    ] = None,
    output: Annotated[Path, typer.Option(help="The folder for the files.")] = Path("optimized"),
) -> None:
    """Write a trained model as ONNX, in half precision and in 8 bits, and as TensorRT engines where a builder is installed.

    Says of each variant how near it is to the model, and leaves a README with the commands for a server with the GPU. Whether
    accuracy is kept, chapter 40 says. Exit code 0: written. 1: it could not be, and the message says why.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # nothing of TensorFlow's own is of interest here
    sys.path.insert(0, os.getcwd())  # where the user's modules are
    from . import devices, inference, tables

    own_layers = ("altlas_lib.training.model.multi_scale", "altlas_lib.training.model.losses")  # of chapter 30's model
    with _said_plainly(inference.InferenceError, ValueError, OSError):
        devices.find_gpu(gpu)
        variants, engines = inference.optimize(model, output, gpu, calibration, modules=own_layers)
    formats = dict.fromkeys(("largest difference", "root mean square"), "{:.2g}") | {"same class": "{:.2%}"}
    print(tables.show(inference.variant_rows(variants), formats=formats, missing="-").text(120))
    print(*map(inference.describe_engine, engines), sep="\n")
    print(f"written to {output}/")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A run under outputs/.", show_default=False)],
    second: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    everything: Annotated[bool, typer.Option("--all", help="Also what stayed within the noise.")] = False,
) -> None:
    """Say what changed between two runs: what they were made with, then times, memory, scores, losses, batches and verdicts.

    A ratio is a range, and is only claimed where the two ranges do not overlap. Exit code 0: compared. 1: there is no such run.
    """
    from . import report
    from .paths import RunFolder, outputs_dir

    runs = [RunFolder(outputs_dir() / name) for name in (first, second)]
    for run, name in zip(runs, (first, second), strict=True):
        if run.path.parent != outputs_dir() or not run.results.is_dir():
            known = ", ".join(sorted(path.parent.name for path in outputs_dir().glob("*/results"))) or "none"
            print(f"no run {name!r} in {outputs_dir()}; there are: {known}", file=sys.stderr)
            raise typer.Exit(1)
    print(report.format_comparison(report.compare_runs(*runs), everything=everything))


app.command("serve")(serving.command)


def _named(
    option: str, text: str, parse: Callable[[str], Any], expected: str, is_name: Callable[[str], bool] = bool
) -> tuple[str, Any]:
    """`NAME=value` of an option that may be repeated."""
    name, equals, value = text.partition("=")
    try:
        if not is_name(name) or not equals:
            raise ValueError("no name before an equals sign")
        return name, parse(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{option} {text[:200]}: {error}; expected {expected}") from None


def _argument(text: str) -> tuple[str, Any]:
    expected = "NAME=JSON, such as --arg n=100 or --arg 'text=\"hello\"'"
    return _named("--arg", text, json.loads, expected, str.isidentifier)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    expected = "NAME=D,D, such as --input tokens=128 or --input image=224,224,3"
    return _named("--input", text, lambda sizes: tuple(map(int, sizes.split(","))), expected)


def main() -> None:
    """Run a command; a folder that cannot be used is a message, and so is an extra that is not installed."""
    try:
        app()
    except OSError as error:
        sys.exit(str(error))
    except ModuleNotFoundError as error:
        if not (extra := extras.extra_of(error.name)):
            raise
        command = extras.command_for(extra, sys.argv[1:])
        print(f"{error.name} is not installed; the extra {extra!r} brings it: {command}", file=sys.stderr, flush=True)
        if not extras.runs_by_uvx():
            sys.exit(1)
        os.execvp("uvx", shlex.split(command))  # as uvx was asked for, with what that needs


if __name__ == "__main__":
    main()
