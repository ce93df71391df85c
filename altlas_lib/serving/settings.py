"""What a server is started with: the options of `altlas serve`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from ..paths import MIB, read_bounded

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ServeError(Exception):
    """The server cannot start; the message says what to do."""


@dataclass(frozen=True)
class Settings:
    """Times in seconds, sizes in bytes. Raises ServeError for what cannot be served."""

    corpus: Annotated[Path | None, Option(help="A .npy matrix that the model `similarity` searches, a row per vector.")] = None
    models: Annotated[list[Path] | None, Option("--model", help="An ONNX file, served by its name; may be repeated.")] = None
    device: Annotated[str, Option(help="cpu, gpu (all of this machine's), or auto.")] = "auto"
    host: Annotated[str, Option(help="Address to listen on; any but this machine's own takes a token.")] = "127.0.0.1"
    port: Annotated[int, Option(min=0, max=65535)] = 8000
    store: Annotated[Path, Option(help="Folder of the jobs, on a local disk: not over NFS.")] = Path("outputs/serving")
    token_file: Annotated[Path | None, Option(help="Holds the token that clients send; or set ALTLAS_TOKEN.")] = None
    dask: Annotated[str | None, Option(help="Address of a Dask scheduler that top_k jobs run on.")] = None
    max_batch: Annotated[int, Option(min=1, help="Waiting requests that are computed together; 1: no batching.")] = 64
    max_waiting: Annotated[int, Option(min=1, help="Requests that may wait for a worker.")] = 256
    max_held_bytes: Annotated[int, Option(min=1, help="Of all requests in memory together.")] = 256 * MIB
    max_body_bytes: Annotated[int, Option(min=1, help="Of a request.")] = 64 * MIB
    max_json_bytes: Annotated[int, Option(min=1, help="Of a request's JSON.")] = 8 * MIB
    max_job_bytes: Annotated[int, Option(min=1, help="Of a job.")] = 2048 * MIB
    max_jobs: Annotated[int, Option(min=1, help="Jobs that may be queued.")] = 100
    max_tries: Annotated[int, Option(min=1, help="Starts of a job whose worker dies or whose server is killed.")] = 3
    keep_s: Annotated[float, Option(min=0, help="How long a result is kept; that there was one, ten times as long.")] = 86400
    read_time_limit_s: Annotated[float, Option(min=0.1, help="For a body to arrive; longer for a large one.")] = 30
    compute_time_limit_s: Annotated[float, Option(min=1, help="After which the worker of a request is ended.")] = 60
    job_time_limit_s: Annotated[float, Option(min=1, help="After which the worker of a job is ended.")] = 3600

    def __post_init__(self) -> None:
        for path in filter(None, (self.corpus, *(self.models or ()))):
            if not path.is_file():
                raise ServeError(f"{path}: no such file; give a .npy file as --corpus, .onnx files as --model")
        if not self.corpus and not self.models:
            raise ServeError("nothing to serve: give --corpus vectors.npy, --model model.onnx, or both")
        if self.token() == "":
            raise ServeError("the token is empty: write one into its file, such as by `openssl rand -hex 32`")
        if self.token() is None and self.host not in _LOOPBACK:
            raise ServeError(f"--host {self.host} without a token: give --token-file, else anybody could send work")

    def token(self) -> str | None:
        try:
            return read_bounded(self.token_file).decode().strip() if self.token_file else os.environ.get("ALTLAS_TOKEN")
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"--token-file {self.token_file}: {error}; give a file that can be read") from None

    def devices(self) -> list[str]:
        """`["cpu"]`, or the index of each GPU. Raises ServeError."""
        from ..devices import describe_gpus

        gpus = [str(gpu.index) for gpu in describe_gpus()] if self.device != "cpu" else []
        if self.device not in ("auto", "cpu", "gpu") or (self.device == "gpu" and not gpus):
            raise ServeError(
                f"--device {self.device}: expected auto, cpu or gpu, and {len(gpus)} GPUs are here; `altlas check`"
            )
        return gpus or ["cpu"]
