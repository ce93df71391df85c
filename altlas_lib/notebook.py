"""What every notebook of the book begins and ends with: its run folder, its answer first, its figures and its result."""

import base64
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any, TypeVar

from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import figures, paths
from .results import ChapterResult, FigureFile, Provenance

Result = TypeVar("Result", bound=ChapterResult)
_NOT_YET = "The answer stands here once all cells have run."


class Notebook:
    """A notebook while it is executed; shows a place at its top that `save` fills with the answer.

    Args:
        namespace: `globals()`, before anything but the parameters has been annotated: the annotated names are the parameters.

    Attributes:
        run: the folder of the run called `run_name`.
        figures: what `figure` has saved, in order.
    """

    def __init__(self, namespace: Mapping[str, Any]) -> None:
        self._parameters = {name: namespace[name] for name in namespace["__annotations__"]}
        self.run = paths.run_folder(self._parameters["run_name"])
        self.figures: list[FigureFile] = []
        self._picture, self._answer = "", display(HTML(f"<p><em>{_NOT_YET}</em></p>"), display_id=True)

    @contextmanager
    def figure(self, name: str, *, alt: str, first: bool = False, **subplots_arguments: Any) -> Iterator[tuple[Figure, Axes]]:
        """`figures.figure`, saved as `name` at the end of the block, and shown with its title as the line to click.

        `first`: shown at the top instead, below the answer.
        """
        with figures.figure(shown=False, **subplots_arguments) as (fig, axes):
            yield fig, axes
            saved = figures.save_figure(fig, self.run, name, alt=alt)
        self.figures.append(saved)
        picture = base64.b64encode((self.run.figures / saved.file).read_bytes()).decode()
        image, title = f'<img src="data:image/png;base64,{picture}" alt="{escape(alt)}">', escape(saved.title)
        if first:
            self._picture = f"<p><strong>{title}</strong></p>{image}"
            self._show(_NOT_YET)
        else:
            display(HTML(f"<details><summary>figure: {title}</summary>{image}</details>"))

    @staticmethod
    def say(text: str) -> None:
        """Print a paragraph in lines that no page has to break within a word."""
        print(textwrap.fill(text, 110))

    def save(self, kind: type[Result], *, finding: str, **found: Any) -> Result:
        """Save the chapter's result, of `kind` and with these fields, and show its finding at the top."""
        provenance = Provenance.now(self._parameters)
        result = kind(provenance=provenance, finding=finding, figures=self.figures, **found).save(self.run)
        self._show(result.finding)
        return result

    def _show(self, answer: str) -> None:
        answer = f"{answer[0].upper()}{answer[1:].removesuffix('.')}."
        if self._answer:  # None outside of a notebook
            self._answer.update(HTML(f'<p style="font-size: larger"><strong>{escape(answer)}</strong></p>{self._picture}'))
