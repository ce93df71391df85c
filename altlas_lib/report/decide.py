"""From results to decisions: of each question's answers in `decisions.yaml` the first whose conditions hold."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from ..results import CHAPTERS, ChapterResult, Quantity
from .facts import FACTS
from .language import Language
from .rules import Checked, Rules, read_yaml

Verdict = Literal["go", "go with conditions", "no-go", "not enough evidence"]


class Pointer(Checked):
    """A number of a result by its place in the file (a JSON Pointer, RFC 6901); a quantity has unit and basis of its own."""

    label: str
    at: str
    unit: str = "share"
    basis: str = "measured"
    when: tuple[str, ...] = ()


class Answer(Checked):
    """A row of a question's table."""

    when: tuple[str, ...] = ()
    verdict: Verdict
    why: str
    changes: tuple[str | dict[str, str], ...] = ()


class Question(Checked):
    chapter: str
    question: str
    about: str = ""
    evidence: tuple[Pointer, ...] = ()
    changes: tuple[dict[str, str], ...] = ()
    answers: list[Answer]


@functools.cache
def load_questions() -> list[Question]:
    """`decisions.yaml`, read and checked."""
    return TypeAdapter(list[Question]).validate_python(read_yaml("decisions.yaml"))


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
class Decision:
    """The answer to one question.

    Attributes:
        chapter: whose result it rests on.
        why: one sentence.
        about: which data and model it speaks of; "" where the chapter says.
        evidence: the numbers that carry it; none where there are none.
        changes: what would change it, each one sentence.
    """

    question: str
    chapter: str
    verdict: Verdict
    why: str
    about: str = ""
    evidence: list[Evidence] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def holds(conditions: Sequence[str], facts: Mapping[str, Any]) -> bool:
    """Whether all conditions, `"name"` or `"not name"`, are true of the facts; what is no fact is not true."""
    return all(bool(facts.get(name.removeprefix("not "))) != name.startswith("not ") for name in conditions)


def decide(results: dict[str, ChapterResult], rules: Rules, language: Language, run_name: str) -> list[Decision]:
    """An answer to each question, from the chapters' results that are there."""
    numbers = {chapter.chapter: chapter.number for chapter in CHAPTERS}
    decisions = []
    for asked in load_questions():
        question = language.text(asked.question)
        if asked.chapter not in results:
            command = f"altlas run --run {run_name} --only {numbers[asked.chapter]}"
            changes = [language.text("Run the chapter: {command}", command=command)]
            why = language.text("This chapter has no result.")
            decisions.append(Decision(question, asked.chapter, "not enough evidence", why, changes=changes))
            continue
        result = results[asked.chapter]
        facts = FACTS[asked.question](result, rules)
        answer = next(each for each in asked.answers if holds(each.when, facts))
        decisions.append(
            Decision(
                question,
                asked.chapter,
                answer.verdict,
                language.text(answer.why, **facts),
                language.text(asked.about, **facts) if asked.about else "",
                list(_evidence(asked, result, facts, language)),
                list(_changes((*asked.changes, *answer.changes), facts, language)),
            )
        )
    return decisions


def _changes(rows: Sequence[str | dict[str, str]], facts: Mapping[str, Any], language: Language) -> Iterator[str]:
    """A sentence; `{condition: sentence}`, said where it holds; or `*name`, a fact that is a list of sentences."""
    for row in rows:
        conditions, sentence = next(iter(row.items())) if isinstance(row, dict) else ("", row)
        if conditions and not holds([conditions], facts):
            continue
        if sentence.startswith("*"):
            yield from map(language.say, facts[sentence[1:]])
        else:
            yield language.text(sentence, **facts)


def _used(sentence: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if f"{{{name}}}" in sentence}


def _evidence(asked: Question, result: ChapterResult, facts: Mapping[str, Any], language: Language) -> Iterator[Evidence]:
    """Each number that the question points at, as far as the result has it."""
    for pointer in asked.evidence:
        if None in _used(pointer.at, facts).values() or not holds(pointer.when, facts):
            continue
        place, value = pointer.at.format(**facts), result
        for step in place.strip("/").split("/"):
            value = value[int(step)] if isinstance(value, list) else getattr(value, step)
        if value is None:
            continue
        of_own = isinstance(value, Quantity)
        basis, device = (value.basis, value.device) if of_own else (pointer.basis, facts["device"])
        text = language.number(value) if of_own else language.amount(value, pointer.unit)
        label = language.text(pointer.label, **facts)
        yield Evidence(label, text, basis, device, f"results/{asked.chapter}.json#{place}")
