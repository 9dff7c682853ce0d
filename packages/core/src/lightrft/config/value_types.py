"""Types of settings: which values a setting takes, and in which forms they may be written."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from lightrft.config.paths import expanded, expanded_sources, expanded_word


def _no_bool(value: Any) -> Any:
    # pydantic reads yes as 1, and YAML has many words for yes
    if isinstance(value, bool):
        raise PydanticCustomError("bool_as_number", "input should be a number, not yes or no")
    return value


def _regular_expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise PydanticCustomError("regular_expression", "input is not a regular expression: {reason}", {"reason": str(error)}) from None
    return value


def one_or_more(value: Any) -> Any:
    # one path may be written as it is; none as an empty text
    return ([value] if value else []) if isinstance(value, str) else value


def _joined(value: Any) -> Any:
    # a recipe lists what a command line writes with commas
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        return value
    if len(value) > 1 and (split := [word for word in value if "," in word]):
        raise PydanticCustomError("comma", "a path of a list may hold no comma, as {path} does; rename it", {"path": repr(split[0])})
    return ",".join(value)


def numbers(value: Any) -> Any:
    # on a command line, numbers may have commas between them, as the sources have
    words = [value] if isinstance(value, (str, int, float)) else value
    return [part for word in words for part in (word.split(",") if isinstance(word, str) else [word])] if isinstance(words, list) else words


def one_alone(value: Any) -> Any:
    # one entry may be written as it is
    return [value] if isinstance(value, (str, int)) else value


def json_object(value: Any) -> Any:
    # on a command line, a mapping is written as JSON
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "{}")
    except ValueError as error:
        raise PydanticCustomError("no_json", "input is no JSON object: {reason}", {"reason": str(error)}) from None


NoBool = BeforeValidator(_no_bool)
LARGEST_COUNT = 2**53
"""Beyond it libraries overflow, and a number is no longer what other formats keep of it."""
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT), NoBool]
CountOrOff = Annotated[int, Field(ge=0, le=LARGEST_COUNT), NoBool]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), NoBool]
Number = Annotated[float, NoBool]
Positive = Annotated[float, Field(gt=0), NoBool]
PositiveOrOff = Annotated[float, Field(ge=0), NoBool]
AtLeastOne = Annotated[float, Field(ge=1), NoBool]
OneToTwo = Annotated[float, Field(ge=1, le=2), NoBool]
AboveOne = Annotated[float, Field(gt=1), NoBool]
Fraction = Annotated[float, Field(gt=0, le=1), NoBool]
RegularExpression = Annotated[str, AfterValidator(_regular_expression)]
PathText = Annotated[str, AfterValidator(expanded)]
PathWord = Annotated[str, AfterValidator(expanded_word)]
Sources = Annotated[str, BeforeValidator(_joined), AfterValidator(expanded_sources)]
StopString = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, le=LARGEST_COUNT), NoBool]
Decay = Annotated[float, Field(ge=0, lt=1), NoBool]
Fraction01 = Annotated[float, Field(ge=0, le=1), NoBool]
