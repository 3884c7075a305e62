"""Conditions on columns as text, such as ``rating >= 4 and event in ['cart', 'purchase']``, for logs and items."""

from typing import Annotated

from pydantic import AfterValidator

from recpipe.data.conditions.arrow import condition_mask
from recpipe.data.conditions.parser import ParsedCondition, parse_condition

__all__ = ["Condition", "ParsedCondition", "check_condition", "condition_mask", "parse_condition"]


def check_condition(text: str) -> str:
    """Return ``text`` if it can be parsed. Raises ValueError with the position of the error."""
    parse_condition(text)
    return text


Condition = Annotated[str, AfterValidator(check_condition)]
