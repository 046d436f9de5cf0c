"""Exact match: is the completion that the model makes by itself the one that the data holds?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sf_contract.bundle import Bundle
from sf_contract.errors import DataError, UsageError
from sf_contract.samples import fill_template
from sf_contract.tokenizer import open_tokenizer
from sf_server.results.generation import Completion, Ending, Generator, complete
from sf_server.results.text_front import LabelledRow


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """What of a completion is compared.

    Attributes:
        pattern: its first group where it matches first, as in `#### (.*)`; None: the whole text, without white space around.
        max_new_tokens: at most so many tokens are made.
    """

    pattern: re.Pattern[str] | None
    max_new_tokens: int

    def answer_in(self, text: str) -> str | None:
        """The answer; None where the pattern does not match."""
        if self.pattern is None:
            return text.strip()
        found = self.pattern.search(text)
        return None if found is None else found[1].strip()


def answer_rule(pattern: str | None, *, max_new_tokens: int) -> AnswerRule:
    """A rule from what was given.

    Raises:
        UsageError: the pattern is no regular expression, or has no group.
    """
    if pattern is None:
        return AnswerRule(None, max_new_tokens)
    try:
        compiled = re.compile(pattern)
    except re.error as problem:
        raise UsageError(f"--answer-pattern {pattern!r}: {problem}", cure="correct the regular expression") from problem
    if compiled.groups < 1:
        raise UsageError(
            f"--answer-pattern {pattern!r} has no group",
            cure="put what is compared into parentheses, as in '#### (.*)'",
        )
    return AnswerRule(compiled, max_new_tokens)


def count_matches(generator: Generator, bundle: Bundle, rows: Sequence[LabelledRow], rule: AnswerRule) -> int:
    """How many of the rows' completions the model makes by itself, the likeliest token each time.

    Raises:
        DataError: the answer of a row is not found in its own completion.
    """
    spec = bundle.manifest.task
    tokenizer = open_tokenizer(bundle)
    ending = Ending(max_new_tokens=rule.max_new_tokens, end_token_id=spec.end_token_id)
    matches = 0
    for number, row in enumerate(rows, start=1):
        wanted = rule.answer_in(fill_template(spec.template.completion or "", row.record))
        if wanted is None:
            raise DataError(
                f"the completion of usable row {number} does not match --answer-pattern",
                cure="correct the pattern, or leave it out to compare whole completions",
            )
        prompt = tokenizer.encode(fill_template(spec.template.prompt, row.record), special_tokens=True, max_tokens=None)
        completion = Completion(tokenizer, ())
        for _ in complete(generator, prompt, completion, ending):
            pass
        matches += rule.answer_in(completion.text) == wanted
    return matches
