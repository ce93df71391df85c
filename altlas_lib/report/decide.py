"""From results to decisions: of each question's answers in `decisions.yaml` the first whose conditions hold."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from ..manifest import Manifest
from ..paths import RunFolder
from ..results import CHAPTERS, ChapterResult, Model, Quantity, ResultError
from .costs import savings
from .facts import Facts, find_facts
from .language import Language, Sentence
from .rules import Rules, read_yaml

Verdict = Literal["go", "go with conditions", "no-go", "not enough evidence"]
OverallVerdict = Literal["do now", "do not buy yet", "measure next"]


class Pointer(Model):
    """A number of a result by its place in the file (a JSON Pointer, RFC 6901); a quantity has unit and basis of its own."""

    label: str
    at: str
    unit: str = "share"
    basis: str = "measured"
    when: tuple[str, ...] = ()


class Answer(Model):
    """A row of a question's table; `command`, on a machine with a GPU or on any, would answer what it leaves open."""

    when: tuple[str, ...] = ()
    verdict: Verdict | OverallVerdict
    why: str
    changes: tuple[str | dict[str, str], ...] = ()
    command: str = ""
    on_gpu: bool = False


class Question(Model):
    """What is decided from a chapter's result, by which facts."""

    chapter: str
    key: str
    question: str
    about: str = ""
    effort: str = ""
    risk: str = ""
    facts: Mapping[str, str] = Field(default={})
    evidence: tuple[Pointer, ...] = ()
    changes: tuple[dict[str, str], ...] = ()
    answers: list[Answer]


class Tables(Model):
    """`decisions.yaml`: what chapters are about and whose results they read, and the questions, in `next_steps` those that
    decide most first.
    """

    chapters: dict[str, str]
    reads: dict[str, list[str]]
    questions: list[Question]
    without_result: list[Answer]
    next_steps: list[str]
    overall: list[Answer]


@functools.cache
def load_tables() -> Tables:
    return Tables.model_validate(read_yaml("decisions.yaml"))


@dataclass(frozen=True)
class Evidence:
    """A number that carries a decision.

    Attributes:
        source: where it stands: result file and place in it.
    """

    label: str
    text: str
    basis: str
    device: str
    source: str


@dataclass(frozen=True)
class Step:
    """A command that answers an open question.

    Attributes:
        where: the machine that it needs; "": any.
        minutes: that it takes, as this run's chapters took here, else as the rules say.
        decides: the questions.
    """

    command: str
    where: str
    minutes: str
    decides: str


@dataclass(frozen=True)
class Decision:
    """The answer to one question.

    Attributes:
        asked: the question's table, with effort and risk.
        why: one sentence.
        about: which data and model it speaks of; "" where the chapter says.
        evidence: the numbers that carry it; none where there are none.
        changes: what would change it, each one sentence.
        step: the command that would answer it; None: it is answered.
        facts: what the sentences are made of.
    """

    asked: Question
    verdict: Verdict
    question: str
    why: str
    about: str
    evidence: list[Evidence]
    changes: list[str]
    step: Step | None
    facts: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Overall:
    """The one answer above all questions, and what to do next, the step that decides most first."""

    verdict: OverallVerdict
    why: str
    steps: list[Step]


def holds(conditions: Sequence[str], facts: Mapping[str, Any]) -> bool:
    """Whether all conditions, `"name"` or `"not name"`, are true of the facts; what is no fact is not true."""
    return all(bool(facts.get(name.removeprefix("not "))) != name.startswith("not ") for name in conditions)


@dataclass(frozen=True)
class Report:
    """What the results of a run say, in a language.

    Attributes:
        results: chapter -> its result, those that could be read.
        problems: chapter -> why its result could not.
    """

    run: RunFolder
    results: Mapping[str, ChapterResult]
    problems: Mapping[str, str]
    rules: Rules
    language: Language

    @classmethod
    def read(cls, run: RunFolder, *, language: str = "en", rules: Rules | str | Path | None = None) -> Self:
        """Read every chapter's result; one that is missing, damaged or of another schema version becomes a problem by name.

        Args:
            rules: what makes a go and what it costs: `Rules.load(...)`, or a file that changes it; "" or None: as they are.

        Raises:
            ValueError: no such language, or rules that cannot be read.
        """
        results, problems = {}, {}
        for chapter in CHAPTERS:
            try:
                results[chapter.chapter] = chapter.load(run)
            except ResultError as error:
                problems[chapter.chapter] = str(error)
        return cls(run, results, problems, rules if isinstance(rules, Rules) else Rules.load(rules), Language.load(language))

    @functools.cached_property
    def decisions(self) -> list[Decision]:
        """An answer to each question, from the chapters' results that are there."""
        return [self._answer(asked) for asked in load_tables().questions]

    @functools.cached_property
    def overall(self) -> Overall:
        """The one answer above the questions."""
        facts: Facts = {}
        for each in self.decisions:
            kinds = {"go": each.verdict.startswith("go"), "no": each.verdict == "no-go", "why": each.why}
            kinds |= {"open": each.verdict == "not enough evidence", "missing": each.asked.chapter not in self.results}
            facts |= {f"{each.asked.key}_{kind}": value for kind, value in kinds.items()}
            facts |= {name: each.facts[name] for name in ("cheaper", "cheaper_gain") if name in each.facts}
        of_search = [each for each in savings(self.results, self.rules.money) if each.chapter == "similarity"]
        facts["costs_more"] = any(each.own_prices and each.money and each.money.high < 0 for each in of_search)
        row = next(each for each in load_tables().overall if holds(each.when, facts))
        steps: dict[str, Step] = {}
        for each in sorted(self.decisions, key=lambda each: load_tables().next_steps.index(each.asked.key)):
            if each.step:
                same = steps.get(each.step.command)
                steps[each.step.command] = replace(each.step, decides=f"{same.decides} {each.question}") if same else each.step
        return Overall(row.verdict, self.language.text(row.why, **facts), list(steps.values()))

    @property
    def missing(self) -> str:
        """Options of `altlas run` that make every result that is not there, and the report."""
        numbers = [chapter.number for chapter in CHAPTERS if chapter.chapter not in self.results]
        return " ".join(f"--only {number}" for number in (*numbers, "90"))

    def _answer(self, asked: Question) -> Decision:
        facts: Facts = {"run": self.run.name, "missing": self.missing, "person_days": self.rules.money.person_days}
        if result := self.results.get(asked.chapter):
            facts |= find_facts(asked.key, asked.facts, result, self.rules)
        else:
            rows = load_tables().without_result
            asked = Question(chapter=asked.chapter, key=asked.key, question=asked.question, answers=rows)
        answer = next(each for each in asked.answers if holds(each.when, facts))
        question, why, about = (self.language.text(each, **facts) for each in (asked.question, answer.why, asked.about))
        evidence, changes = self._evidence(asked, facts), self._changes((*asked.changes, *answer.changes), facts)
        step = self._step(answer, facts, question) if answer.command else None
        return Decision(asked, answer.verdict, question, why, about, list(evidence), list(changes), step, facts)

    def _step(self, answer: Answer, facts: Facts, decides: str) -> Step:
        command, _ = answer.command.format(**facts), self.language.text
        known = self.rules.minutes | {n: each.duration_s / 60 for n, each in Manifest.load(self.run).by_number().items()}
        chapters = re.findall(r"--only (\d\d)", command) or ["plan"]
        minutes = max(1, round(sum(known[each] for each in chapters)))
        where = _("on a machine with a {gpu}", gpu=facts["gpu"]) if answer.on_gpu else ""
        return Step(command, where, _("about {minutes} min", minutes=minutes), decides)

    def _changes(self, rows: Sequence[str | dict[str, str]], facts: Facts) -> Iterator[str]:
        """A sentence; `{condition: sentence}`, said where it holds; or `*name`, a fact that is a list of sentences."""
        for row in rows:
            condition, sentence = next(iter(row.items())) if isinstance(row, dict) else ("", row)
            if not condition or holds([condition], facts):
                said = facts[sentence[1:]] if sentence.startswith("*") else [Sentence(sentence, **facts)]
                yield from map(self.language.say, said)

    def _evidence(self, asked: Question, facts: Facts) -> Iterator[Evidence]:
        """Each number that the question points at, as far as the result has it."""
        language = self.language
        for pointer in asked.evidence:
            place, value = pointer.at.format(**facts), self.results[asked.chapter]
            if "/None" in place or not holds(pointer.when, facts):
                continue
            for step in place.strip("/").split("/"):
                value = value[int(step)] if isinstance(value, list) else getattr(value, step)
            if value is None:
                continue
            of_own = isinstance(value, Quantity)
            basis, device = (value.basis, value.device) if of_own else (pointer.basis, facts["device"])
            text = language.band(value) if of_own else language.amount(value, pointer.unit)
            yield Evidence(language.text(pointer.label, **facts), text, basis, device, f"results/{asked.chapter}.json#{place}")
