"""What a page of several tasks begins with: its title, what was asked, and the answer that the intervals allow."""

import os
import re
from collections.abc import Sequence

from ringrl.reporting.page.opening import Compared, compared, listed
from ringrl.reporting.page.task_content import unbroken
from ringrl.reporting.statistics.across_tasks import Across, Pair
from ringrl.reporting.statistics.bootstrap import show
from ringrl.reporting.statistics.task_statistics import Analysis

_NAMED = 3  # tasks that a sentence names; more are counted
_DOMAINS = 4  # that a title names
_ADJECTIVES = ("", "hidden", "visible")  # no names by themselves
_LONG_NAMES = ("ball_in_cup", "point_mass")  # domains of several words

Found = dict[str, list[tuple[str, Compared]]]
"""Of each agent, by its label, a task and what was found there."""


def title_of(tasks: Sequence[str]) -> str:
    """`2 tasks of walker and cheetah`: a heading over several tasks."""
    words = [task.split("_") for task in tasks]
    begin = "_".join(os.path.commonprefix(words))
    domains = [begin] if begin not in _ADJECTIVES else list(dict.fromkeys(map(_domain, tasks)))
    known = len(domains) <= _DOMAINS and all(re.fullmatch(r"[a-z][a-z0-9_]*", each) for each in domains)
    return f"{len(tasks)} tasks of {listed(domains)}" if known else f"{len(tasks)} tasks"


def _domain(task: str) -> str:
    """The task's first word, without `hidden` and `visible`, or more words where the domain's name has more."""
    first, _, rest = task.partition("_")
    name = rest if first in _ADJECTIVES and rest else task
    return next((each for each in _LONG_NAMES if name.startswith(f"{each}_")), name.partition("_")[0])


def openings_across(analyses: Sequence[Analysis], across: Across) -> list[dict[str, str]]:
    """Each question that the tasks' own parts ask, answered over all of them, and which agent earns most on average."""
    questions: dict[str, Found] = {}
    for analysis in analyses:
        question, entries = compared(analysis)
        for each in entries:
            questions.setdefault(question, {}).setdefault(each.label, []).append((analysis.section.task, each))
    found = [{"question": question, "answer": _answer(by_label)} for question, by_label in questions.items()]
    best = _best(across)
    return found + ([best] if best else [])


def _answer(by_label: Found) -> str:
    readers = {label: entries for label, entries in by_label.items() if all(each.reads for _, each in entries)}
    sentences = []
    for state, begin in ((True, "Yes"), (False, "Less")):
        if shown := _shown(readers, state):
            sentences.append(f"{begin}: {listed(shown)}.")
    # Agents whose context ends with a trial differ by chance or by the task, not by learning in context.
    others = {label: entries for label, entries in by_label.items() if label not in readers}
    if differ := [*_shown(others, True, "more"), *_shown(others, False, "less")]:
        sentences.append(f"Different, but with no earlier trial in the context: {listed(differ)}.")
    if unclear := [label for label, entries in by_label.items() if all(each.state is None for _, each in entries)]:
        sentences.append(f"Not shown on any task for {listed(unclear)}.")
    return " ".join(sentences)


def _shown(by_label: Found, state: bool, how: str = "") -> list[str]:
    """`AD on 2 of 5 tasks (a, b)`, for each agent that is shown to earn more or less on any."""
    found = []
    for label, entries in by_label.items():
        mine = [task for task, each in entries if each.state is state]
        if not mine:
            continue
        whole, count = len(mine) == len(entries), len(entries)
        every = {1: "its only task", 2: "both tasks"}.get(count, f"all {count} tasks")
        many = every if whole else f"{len(mine)} of {count} tasks"
        named = f" ({', '.join(mine)})" if not whole and len(mine) <= _NAMED else ""
        found.append(f"{label} {how} on {many}{named}".replace("  ", " "))
    return found


def _best(across: Across) -> dict[str, str] | None:
    """Which agent has the highest average; None where fewer than two have one."""
    comparison = across.comparisons["max_of_n"]
    if len(comparison.average) < 2:
        return None
    best = max(comparison.average, key=lambda label: comparison.average[label].value)
    mine = [
        pair for pair in comparison.pairs if best in (pair.one, pair.other) and _other(pair, best) in comparison.average
    ]
    above = [_other(pair, best) for pair in mine if pair.above is (pair.one == best)]
    single = [_other(pair, best) for pair in mine if pair.single]
    rest = [_other(pair, best) for pair in mine if pair.above is None and not pair.single]
    return_ = f"largest return among {across.trials} trials" if across.trials > 1 else "return"
    sentences = [f"{best}, with a score of {show(comparison.average[best])}"]
    sentences += [f"shown to be higher than {listed(above)}"] if above else []
    sentences += [f"not shown to be higher than {listed(rest)}"] if rest else []
    sentences += [f"a single training seed allows no verdict against {listed(single)}"] if single else []
    return {
        "question": f"Which agent’s {return_} is highest, on average over the tasks?",
        "answer": unbroken("; ".join(sentences) + "."),
    }


def _other(pair: Pair, label: str) -> str:
    return pair.other if pair.one == label else pair.one
