"""From results to decisions: of each question's answers in `decisions.yaml` the first whose conditions hold."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from ..results import CHAPTERS, ChapterResult, Quantity
from .costs import savings
from .facts import Facts, find_facts
from .language import Language
from .rules import Checked, Rules, read_yaml

Verdict = Literal["go", "go with conditions", "no-go", "not enough evidence"]
OverallVerdict = Literal["do now", "do not buy yet", "measure next"]
_ORDER = ("integrate", "predict", "fit", "port", "machine")  # of next steps, the one that decides most first


class Pointer(Checked):
    """A number of a result by its place in the file (a JSON Pointer, RFC 6901); a quantity has unit and basis of its own."""

    label: str
    at: str
    unit: str = "share"
    basis: str = "measured"
    when: tuple[str, ...] = ()


class NextStep(Checked):
    """What would answer an open question: `altlas run` with these options, or `altlas plan`."""

    run: str = ""
    plan: bool = False
    on_gpu: bool = False


class Answer(Checked):
    """A row of a question's table."""

    when: tuple[str, ...] = ()
    verdict: Verdict | OverallVerdict
    why: str
    changes: tuple[str | dict[str, str], ...] = ()
    next: NextStep | None = None


class Question(Checked):
    chapter: str
    key: str
    question: str
    about: str = ""
    effort: str
    risk: str
    facts: dict[str, str]
    evidence: tuple[Pointer, ...] = ()
    changes: tuple[dict[str, str], ...] = ()
    answers: list[Answer]


@functools.cache
def load_questions() -> list[Question]:
    """`decisions.yaml`, read and checked."""
    return TypeAdapter(list[Question]).validate_python(read_yaml("decisions.yaml"))


@functools.cache
def load_overall() -> list[Answer]:
    """`overall.yaml`, read and checked."""
    return TypeAdapter(list[Answer]).validate_python(read_yaml("overall.yaml"))


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
        chapter: whose result it rests on.
        why: one sentence.
        about: which data and model it speaks of; "" where the chapter says.
        evidence: the numbers that carry it; none where there are none.
        changes: what would change it, each one sentence.
        step: the command that would answer it; None: it is answered.
        effort, risk: a sentence each.
        facts: what the sentences were made of.
    """

    question: str
    chapter: str
    verdict: Verdict
    why: str
    about: str = ""
    evidence: list[Evidence] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    step: Step | None = None
    effort: str = ""
    risk: str = ""
    key: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


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
class Decider:
    """What all questions of a run share.

    Attributes:
        minutes: number of a chapter -> that it took in this run.
    """

    results: Mapping[str, ChapterResult]
    rules: Rules
    language: Language
    run_name: str
    minutes: Mapping[str, float] = field(default_factory=dict)

    def decide(self) -> list[Decision]:
        """An answer to each question, from the chapters' results that are there."""
        return [self._answer(asked) if asked.chapter in self.results else self._missing(asked) for asked in load_questions()]

    def overall(self, decisions: Sequence[Decision]) -> Overall:
        """The one answer above the questions."""
        facts: Facts = {}
        for each in decisions:
            kinds = {"go": each.verdict.startswith("go"), "no": each.verdict == "no-go"}
            kinds |= {"open": each.verdict == "not enough evidence", "why": each.why, "missing": not each.facts}
            facts |= {f"{each.key}_{kind}": value for kind, value in kinds.items()}
            facts |= {name: each.facts[name] for name in ("cheaper", "cheaper_gain") if name in each.facts}
        of_search = [each for each in savings(self.results, self.rules.money) if each.chapter == "similarity"]
        facts["costs_more"] = any(each.own_prices and each.money and each.money.high < 0 for each in of_search)
        row = next(each for each in load_overall() if holds(each.when, facts))
        steps: dict[str, Step] = {}
        for each in sorted(decisions, key=lambda each: _ORDER.index(each.key)):
            if each.step:
                same = steps.get(each.step.command)
                steps[each.step.command] = replace(each.step, decides=f"{same.decides} {each.question}") if same else each.step
        return Overall(row.verdict, self.language.text(row.why, **facts), list(steps.values()))

    def missing_command(self) -> str:
        """The one command that makes every result that is not there."""
        numbers = [chapter.number for chapter in CHAPTERS if chapter.chapter not in self.results]
        return " ".join(["altlas run --run", self.run_name, *(f"--only {number}" for number in (*numbers, "90"))])

    def _missing(self, asked: Question) -> Decision:
        _ = self.language.text
        command, question = self.missing_command(), _(asked.question)
        changes = [_("The next step at the top runs its chapter.")]
        step = Step(command, "", self._minutes(command), question)
        why = _("This chapter has no result.")
        return Decision(question, asked.chapter, "not enough evidence", why, changes=changes, step=step, key=asked.key)

    def _answer(self, asked: Question) -> Decision:
        result, language = self.results[asked.chapter], self.language
        facts = {"person_days": self.rules.money.person_days} | find_facts(asked.key, asked.facts, result, self.rules)
        answer = next(each for each in asked.answers if holds(each.when, facts))
        question = language.text(asked.question)
        return Decision(
            question=question,
            chapter=asked.chapter,
            verdict=answer.verdict,
            why=language.text(answer.why, **facts),
            about=language.text(asked.about, **facts) if asked.about else "",
            evidence=list(self._evidence(asked, result, facts)),
            changes=list(self._changes((*asked.changes, *answer.changes), facts)),
            step=self._step(answer.next, facts, question) if answer.next else None,
            effort=language.text(asked.effort, **facts),
            risk=language.text(asked.risk, **facts),
            key=asked.key,
            facts=facts,
        )

    def _step(self, step: NextStep, facts: Facts, decides: str) -> Step:
        gpu = facts.get("gpu") or "T4"
        command = f'altlas plan --gpu "{gpu}"' if step.plan else f"altlas run --run {self.run_name} {step.run.format(**facts)}"
        where = self.language.text("on a machine with a {gpu}", gpu=gpu) if step.on_gpu else ""
        return Step(command, where, self._minutes(command), decides)

    def _minutes(self, command: str) -> str:
        known = self.rules.minutes | self.minutes
        chapters = ["plan"] if command.startswith("altlas plan") else [part[:2] for part in command.split("--only ")[1:]]
        return self.language.text("about {minutes} min", minutes=max(1, round(sum(known.get(each, 1) for each in chapters))))

    def _changes(self, rows: Sequence[str | dict[str, str]], facts: Facts) -> Iterator[str]:
        """A sentence; `{condition: sentence}`, said where it holds; or `*name`, a fact that is a list of sentences."""
        for row in rows:
            condition, sentence = next(iter(row.items())) if isinstance(row, dict) else ("", row)
            if condition and not holds([condition], facts):
                continue
            if sentence.startswith("*"):
                yield from map(self.language.say, facts[sentence[1:]])
            else:
                yield self.language.text(sentence, **facts)

    def _evidence(self, asked: Question, result: ChapterResult, facts: Facts) -> Iterator[Evidence]:
        """Each number that the question points at, as far as the result has it."""
        language = self.language
        for pointer in asked.evidence:
            named = {name for name in facts if f"{{{name}}}" in pointer.at}
            if None in (facts[name] for name in named) or not holds(pointer.when, facts):
                continue
            place, value = pointer.at.format(**facts), result
            for step in place.strip("/").split("/"):
                value = value[int(step)] if isinstance(value, list) else getattr(value, step)
            if value is None:
                continue
            of_own = isinstance(value, Quantity)
            basis, device = (value.basis, value.device) if of_own else (pointer.basis, facts["device"])
            text = language.band(value) if of_own else language.amount(value, pointer.unit)
            yield Evidence(language.text(pointer.label, **facts), text, basis, device, f"results/{asked.chapter}.json#{place}")
