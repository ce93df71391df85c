"""Results that no longer say what they seem to: made with other parameters, data or code, or before what they rest on."""

from collections.abc import Iterator, Mapping

from ..manifest import Manifest
from ..paths import RunFolder
from ..results import CHAPTERS, ChapterResult, git_state
from .language import Language

# What a chapter reads of others: made again after it, they leave it behind.
_READS = {"hotspots": ("environment",), "similarity": ("environment", "hotspots")}


def stale(run: RunFolder, results: Mapping[str, ChapterResult], language: Language) -> list[str]:
    """What is wrong with which chapter's result, a sentence each."""
    _ = language.text
    asked, (commit_now, _is_dirty) = Manifest.load(run).by_number(), git_state()
    found, by_commit = [], {}
    for chapter in CHAPTERS:
        if (result := results.get(chapter.chapter)) is None:
            continue
        number, made = chapter.number, result.provenance
        found += _other_parameters(number, made.parameters, asked[number].parameters if number in asked else {}, language)
        if commit_now and made.git_commit and made.git_commit != commit_now:
            by_commit.setdefault(made.git_commit, []).append(number)
        for earlier in _READS.get(chapter.chapter, ()):
            if earlier in results and results[earlier].provenance.created_at > made.created_at:
                other = results[earlier].number
                found.append(_("Chapter {number} is older than chapter {other}, which it reads.", number=number, other=other))
    for commit, numbers in by_commit.items():
        values = {"numbers": ", ".join(numbers), "then": commit[:10], "now": commit_now[:10]}
        found.append(_("Made by other code: chapters {numbers} (commit {then}, now {now}).", **values))
    sources = [getattr(results.get(chapter), "source", None) for chapter in ("hotspots", "similarity")]
    alike = None not in sources and (sources[0].name, sources[0].n_rows) == (sources[1].name, sources[1].n_rows)
    if alike and sources[0].sha256 != sources[1].sha256:
        found.append(_("Chapters 10 and 20 read different texts from {name}: it changed in between.", name=sources[0].name))
    return found


def _other_parameters(number: str, made: Mapping, asked: Mapping, language: Language) -> Iterator[str]:
    for name in sorted(asked):
        if name in made and made[name] != asked[name]:
            values = {"number": number, "name": name, "then": made[name], "now": asked[name]}
            yield language.text("Chapter {number} was made with {name} = {then}; the run asked for {now}.", **values)
