"""Exact top-k by cosine, each row against all others: ours, every peer that is installed, and what multiplying alone costs.

    python -m benchmarks.similarity --sizes 1000 10000 30000 --figure similarity.png
    python -m benchmarks.similarity --show benchmarks/results/similarity.json

Every contestant runs in a process of its own and with the same number of threads. First each one that uses OpenBLAS is tried
with every family of kernels that the CPU can run, and keeps its best: OpenBLAS may not know a CPU newer than itself and then
takes kernels several times slower than others that would run. Then, case by case, all contestants take turns, round after
round, so that a machine that slows down slows them alike. A sample of every answer is compared with float64.
"""

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from altlas_lib.devices import describe_gpus, has_gpu
from altlas_lib.paths import write_atomically

from .contest import Contest, new_record
from .inputs import INPUTS
from .peers import CONTESTANTS, Contestant
from .records import Case, Record
from .show import figure, table

_LARGEST_HARD_INPUT = 10_000
_SIZES_OF_FURTHER_K = range(10_000, 30_001)


def cases(inputs: Sequence[str], sizes: Iterable[int], ks: Sequence[int], d: int) -> list[Case]:
    """The first input at every size with the first k, and from 10,000 to 30,000 rows with the others; each other input at the
    largest size up to 10,000, or else at the smallest, with the first k.

    Raises:
        ValueError: a size has not enough rows for its k.
    """
    (first, *others), sizes, (k, *further) = inputs, sorted(set(sizes)), ks
    hard = max((n for n in sizes if n <= _LARGEST_HARD_INPUT), default=sizes[0])
    chosen = [
        *(Case(input=first, n=n, d=d, k=k) for n in sizes),
        *(Case(input=first, n=n, d=d, k=other) for other in further for n in sizes if n in _SIZES_OF_FURTHER_K),
        *(Case(input=other, n=hard, d=d, k=k) for other in others),
    ]
    for case in chosen:
        if case.n < case.k + 2:
            raise ValueError(
                f"{case.n} rows with k={case.k}: expected at least k + 2 rows; give larger --sizes or a smaller --k"
            )
    return chosen


def select(names: Iterable[str]) -> list[Contestant]:
    """The contestants whose names hold one of `names`, all for none; those of a GPU where there is one.

    Raises:
        ValueError: a name fits none.
    """
    names = [name.lower() for name in names]
    for name in names:
        if not any(name in known.lower() for known in CONTESTANTS):
            raise ValueError(f"contestant {name!r}: expected a part of one of these names: {'; '.join(CONTESTANTS)}")
    wanted = [c for c in CONTESTANTS.values() if not names or any(name in c.name.lower() for name in names)]
    return [contestant for contestant in wanted if has_gpu() or describe_gpus() or not contestant.on_gpu]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    description, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.similarity", None, description, details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", type=_positive, nargs="+", default=[1000, 10_000, 30_000], metavar="N", help="rows (%(default)s)")
    add("--k", type=_positive, nargs="+", default=[10, 100], help="neighbours; all but the first for 10k to 30k (%(default)s)")
    add("--dimensions", type=_positive, default=384, metavar="D", help="values per row (%(default)s)")
    add("--threads", type=_positive, default=2, metavar="N", help="of every contestant (%(default)s)")
    add("--repeats", type=_positive, metavar="N", help="rounds (7 up to 10,000 rows, 3 up to 30,000, then 1)")
    add("--inputs", nargs="+", choices=INPUTS, default=list(INPUTS), metavar="NAME", help=f"of {', '.join(INPUTS)} (all)")
    add("--contestants", nargs="+", default=[], metavar="NAME", help="parts of names (all that are installed)")
    add("--limit", type=_positive, default=60, metavar="S", help="skip who would take longer for one call (%(default)s s)")
    add("--output", type=Path, default=Path("benchmarks/results/similarity.json"), help="%(default)s; written after every case")
    add("--figure", type=Path, metavar="PNG", help="draw time over the number of rows")
    add("--show", type=Path, metavar="JSON", help="measure nothing: print the table of this file, with --figure draw it")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.show:
            record = Record.model_validate_json(options.show.read_text())
        else:
            chosen = cases(options.inputs, options.sizes, options.k, options.dimensions)
            contestants = select(options.contestants)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not options.show:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        parameters = {name: value for name, value in vars(options).items() if name not in ("output", "figure", "show")}
        with tempfile.TemporaryDirectory() as folder:
            contest = Contest(contestants, Path(folder), options.threads, options.limit, options.repeats)
            for record in contest.run(chosen, new_record(contestants, parameters, options.threads)):
                write_atomically(options.output, record.model_dump_json(indent=1) + "\n")
        print(f"\nsaved {options.output}\n")
    print(table(record))
    if options.figure:
        figure(record, options.figure)


if __name__ == "__main__":
    main()
