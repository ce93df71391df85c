"""What the plan's lighter models keep of the quality: the small model and its two options, several seeds, two series.

python -m benchmarks.quality --output benchmarks/results/quality.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from altlas_lib import data, training
from altlas_lib.paths import write_atomically
from altlas_lib.results import Model, Provenance, Quality


class Record(Model):
    provenance: Provenance
    qualities: list[Quality]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=20_000, metavar="N", help="of each series (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="%(default)s")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="%(default)s")
    parser.add_argument("--preset", default="quick", help="%(default)s")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quality.json"), help="%(default)s")
    options = parser.parse_args(arguments)

    config = training.find_preset(options.preset)
    how = {"n_epochs": options.epochs, "micro_batch_size": 64, "learning_rate": 2e-3}
    qualities = []
    for name, regime_strength in (("planted regime", 0.8), ("fair", 0.0)):
        series = data.crash_series(options.values, regime_strength=regime_strength)
        samples, seeds = training.prepare(series.values, window=config.window), range(options.seeds)
        reference = training.forecasts(samples, config, seeds=seeds, **how)
        qualities += training.compare_options(name, series, config, reference, seeds=seeds, **how)
    parameters = {"preset": options.preset, "n_values": options.values, "n_seeds": options.seeds, **how}
    record = Record(provenance=Provenance.now(parameters), qualities=qualities)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, record.model_dump_json(indent=1) + "\n")
    for each in qualities:
        kept = each.gain_kept
        said = f"{kept.value:.1%} ({kept.low:.1%} to {kept.high:.1%})" if kept else "there is none"
        print(f"{each.option}, {each.series}: gain kept {said}; claimed {each.claimed[0]:.0%} to {each.claimed[1]:.0%}")


if __name__ == "__main__":
    main()
