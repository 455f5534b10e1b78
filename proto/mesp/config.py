"""Configuration files: YAML into a pydantic model, and every mistake into one sentence.

A sentence names the file, the key, the value and what is allowed, as in
``deploy/placement.yaml: tick_s = -1, must be in (0, 3600]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import annotated_types
import yaml
from pydantic import BaseModel, ValidationError

from mesp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path, model: type[Model]) -> Model:
    """Reads the YAML file at `path` as a `model`; an empty file gives the defaults.

    Raises:
        InputError: the file cannot be read, is no mapping, or a key or value is not allowed; it tells the first
            mistake, and how many more there are.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, must be a mapping of keys to values")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {first_mistake(error, model)}") from error


def first_mistake(error: ValidationError, model: type[BaseModel], within: str = "") -> str:
    """The first mistake in one clause, and how many more there are; keys are told as below the key `within`."""
    details = error.errors(include_url=False)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return _sentence(details[0], model, within) + more


def _sentence(detail: ErrorDetails, model: type[BaseModel], within: str) -> str:
    key = ".".join(str(part) for part in (within, *detail["loc"]) if part != "")
    if detail["type"] == "extra_forbidden":
        parent, _ = _field(model, detail["loc"][:-1])
        return f"unknown key {key}, allowed are {', '.join(parent.model_fields)}"
    if detail["type"] == "missing":
        return f"{key} is missing"
    if detail["type"] == "value_error":  # a rule of the model's own, which names its keys itself
        rule = detail["msg"].removeprefix("Value error, ")
        return f"{key}: {rule}" if key else rule
    _, field = _field(model, detail["loc"])
    allowed = _range(field) if field else ""
    return f"{key} = {detail['input']!r}, {f'must be {allowed}' if allowed else _lower(detail['msg'])}"


def _field(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[type[BaseModel], FieldInfo | None]:
    """The field at `loc` and the model that holds it, or the model that it is, down nested models."""
    field: FieldInfo | None = None
    for part in loc:
        found = model.model_fields.get(str(part))
        if found is None:
            break
        field = found
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return model, field


def _range(field: FieldInfo) -> str:
    """The numbers that a field allows as an interval; empty when it says nothing of them."""
    low, high = "(-inf", "inf)"
    for bound in field.metadata:
        match bound:
            case annotated_types.Ge(ge=value):
                low = f"[{value}"
            case annotated_types.Gt(gt=value):
                low = f"({value}"
            case annotated_types.Le(le=value):
                high = f"{value}]"
            case annotated_types.Lt(lt=value):
                high = f"{value})"
            case _:
                pass
    return "" if (low, high) == ("(-inf", "inf)") else f"in {low}, {high}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
