"""Results that no longer say what they seem to: made with other parameters, data or code, or before what they rest on."""

from collections.abc import Iterator

from ..manifest import Manifest
from ..results import git_state
from .decide import Report, load_tables


def stale(report: Report) -> Iterator[str]:
    """What is wrong with which chapter's result, a sentence each."""
    _ = report.language.text
    finished, (commit_now, _is_dirty) = Manifest.load(report.run).by_number(), git_state()
    results, by_commit = report.results, {}
    for chapter, result in results.items():
        number, made = result.number, result.provenance
        asked = finished[number].parameters if number in finished else {}
        for name in sorted(asked.keys() & made.parameters):
            if asked[name] != made.parameters[name]:
                values = {"number": number, "name": name, "then": made.parameters[name], "now": asked[name]}
                yield _("Chapter {number} was made with {name} = {then}; the run asked for {now}.", **values)
        if commit_now and made.git_commit and made.git_commit != commit_now:
            by_commit.setdefault(made.git_commit, []).append(number)
        for earlier in load_tables().reads.get(chapter, ()):
            if earlier in results and results[earlier].provenance.created_at > made.created_at:
                other = results[earlier].number
                yield _("Chapter {number} is older than chapter {other}, which it reads.", number=number, other=other)
    for commit, numbers in by_commit.items():
        values = {"numbers": ", ".join(numbers), "then": commit[:10], "now": commit_now[:10]}
        yield _("Made by other code: chapters {numbers} (commit {then}, now {now}).", **values)
    one, two = (getattr(results.get(chapter), "source", None) for chapter in ("hotspots", "similarity"))
    if one and two and (one.name, one.n_rows) == (two.name, two.n_rows) and one.sha256 != two.sha256:
        yield _("Chapters 10 and 20 read different texts from {name}: it changed in between.", name=one.name)
