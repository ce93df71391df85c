"""In your own notebook: `%load_ext altlas_lib`, then `%%altlas` above a cell, `%altlas plan model`, `%altlas top_k vectors`."""

import ast
import html
import linecache
from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from . import devices, profiling, similarity, tables, training
from .profiling.show.terminal import format_profile
from .results import Candidate, WorkloadProfile


@dataclass(frozen=True, repr=False)
class CellReport:
    """What `%%altlas` found: shown as the answer, its evidence, and a flame graph folded below."""

    profile: WorkloadProfile
    candidates: list[Candidate]

    def __repr__(self) -> str:
        return format_profile(self.profile, self.candidates)

    def _repr_html_(self) -> str:
        shown = [
            f"<pre>{html.escape(profiling.answers([self.profile], self.candidates))}</pre>",
            profiling.baseline_table([self.profile]).to_html(),
            profiling.function_table(self.profile).to_html(),
            profiling.route_table(self.candidates).to_html() if self.candidates else "",
        ]
        if self.profile.stacks:
            flames = profiling.flame_graph(self.profile)._repr_html_()
            shown.append(f"<details><summary>flame graph</summary>{flames}</details>")
        return "\n".join([*shown, *(f"<p>{html.escape(note)}</p>" for note in self.profile.notes)])


@magics_class
class AltlasMagics(Magics):
    @line_cell_magic
    @magic_arguments()
    @argument("command", nargs="?", help="`plan` or `top_k`; nothing above a cell, which is then profiled")
    @argument("value", nargs="?", help="a variable: a Keras model (or the name of a preset), or vectors")
    @argument("--gpu", default="T4", help="GPU of the catalogue to project and compile for")
    @argument("--batch-size", type=int, help="of `plan`: this one; by default the largest that fits")
    @argument("-k", type=int, default=10, help="of `top_k`: neighbours per row")
    @argument("--time-limit", type=float, default=60.0, help="seconds for all runs of a cell, or for compiling")
    def altlas(self, line: str, cell: str | None = None) -> Any:
        """Profile a cell, plan a model's memory, or search vectors.

        A cell runs many times in a process of its own, from the values that its names have now, and must be safe to run
        repeatedly; what it assigns stays there.
        """
        asked = parse_argstring(self.altlas, line)
        if cell is not None:
            return self._profile(cell, asked)
        value = self.shell.user_ns.get(asked.value, asked.value)
        if asked.command == "top_k" and value is not None:
            return similarity.top_k(value, asked.k)
        if asked.command != "plan" or value is None:
            raise UsageError(f"%altlas {line}: expected `plan MODEL`, `top_k VECTORS`, or %%altlas above a cell")
        if asked.batch_size:
            return training.plan_memory(value, asked.gpu, batch_size=asked.batch_size, time_limit_s=asked.time_limit)
        if isinstance(value, str):
            found = training.mitigation_table(value, asked.gpu, time_limit_s=asked.time_limit)
            return tables.show(training.mitigation_rows(found))
        return training.largest_batch(value, asked.gpu, time_limit_s=asked.time_limit)

    def _profile(self, cell: str, asked: Any) -> CellReport:
        """As a function of those of the notebook's names that the cell assigns anew: each run starts from their values."""
        name = f"<cell {self.shell.execution_count}>"
        source = self.shell.transform_cell(cell)
        tree = ast.parse(source, name)
        assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        arguments = {known: self.shell.user_ns[known] for known in sorted(assigned & set(self.shell.user_ns))}
        function = ast.parse(f"def cell({', '.join(arguments)}): pass")
        function.body[0].body = tree.body or function.body[0].body
        exec(compile(function, name, "exec"), namespace := dict(self.shell.user_ns))
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        profile = profiling.profile(namespace["cell"], arguments=arguments, workload="cell", time_limit_s=asked.time_limit)
        return CellReport(profile, profiling.rank_candidates([profile], gpu=devices.find_gpu(asked.gpu)))
