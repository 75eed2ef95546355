"""Kaggle keeps questions and answers apart; here they come together again.

`X_challenges.json` is {id: task without test outputs} and `X_solutions.json` beside it is {id: [output, ...]}, by the
index of the test input. Nothing inside the one names the other, so the pair is found by name. Without a solutions file
the answers are simply not known. With one, each task must have exactly as many answers as test inputs, and an output
that the challenges already hold must be the same: a solutions file of another release would else pass unseen.
"""

from collections.abc import Iterable, Mapping

from layertap.core.records import BadTask
from layertap.dataset.content import Refused, whole
from layertap.dataset.raw import RawRecord, RawRecords
from layertap.dataset.source import Place
from layertap.dataset.strict_json import kind_name
from layertap.errors import BadTaskError, DatasetError

_CHALLENGES, _SOLUTIONS = "challenges", "solutions"


def kaggle_records(place: Place, challenges: Mapping[str, object]) -> RawRecords:
    """The tasks of a challenges file in file order, with their answers where `place` has a solutions file beside it.

    Raises DatasetError where there is a solutions file that is not {id: [output, ...]}.
    """
    solutions = _solutions_place(place)
    answers = None if solutions is None else _read_answers(solutions)
    for task_id, task in challenges.items():
        where = f"{place} key {task_id!r}"
        if solutions is None or answers is None:
            yield RawRecord(where, "task", task, task_id)
            continue
        try:
            answered = _with_answers(task, answers.get(task_id), solutions)
        except BadTaskError as error:
            yield BadTask(where, task_id, str(error))
        else:
            yield RawRecord(f"{where} (answers from {solutions})", "task", answered, task_id)


def solutions_among(places: Iterable[Place]) -> set[Place]:
    """Those of the places that are the solutions of another one."""
    places = set(places)
    return places & {place.beside(_CHALLENGES, _SOLUTIONS) for place in places if _CHALLENGES in place.name}


def _solutions_place(place: Place) -> Place | None:
    if _CHALLENGES not in place.name:
        return None
    solutions = place.beside(_CHALLENGES, _SOLUTIONS)
    return solutions if solutions.is_there() else None


def _read_answers(solutions: Place) -> Mapping[str, object]:
    content = whole(solutions.lines())
    if isinstance(content, Refused):
        raise DatasetError(f"{solutions}: {content.reason}; mend the solutions file or move it away")
    if not isinstance(content.value, dict):
        raise DatasetError(f"{solutions}: is {kind_name(content.value)}, not an object {{id: [output, ...]}}")
    return content.value


def _with_answers(task: object, answers: object, solutions: Place) -> object:
    if not isinstance(task, dict) or not isinstance(task.get("test"), list):
        return task  # the check of the task says what is wrong with it
    if not isinstance(answers, list):
        found = "no entry" if answers is None else kind_name(answers)
        raise BadTaskError(f"{solutions} has {found} for it, not a list of outputs")
    if len(answers) != len(task["test"]):
        raise BadTaskError(f"has {len(task['test'])} test inputs, but {solutions} has {len(answers)} outputs for it")
    pairs = enumerate(zip(task["test"], answers, strict=True), 1)
    return {**task, "test": [_with_answer(pair, answer, number, solutions) for number, (pair, answer) in pairs]}


def _with_answer(pair: object, answer: object, number: int, solutions: Place) -> object:
    if not isinstance(pair, dict):
        return pair
    if pair.get("output") not in (None, answer):
        raise BadTaskError(f"test pair {number} has another output than {solutions} has for it")
    return {**pair, "output": answer}
