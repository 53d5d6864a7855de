"""What the sections are made of: their base class, and types of values that a setting may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from raylaunch.config.paths import absolute, file_or_text, folder_or_name
from raylaunch.values.masking import masked


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):  # to Python, true is the number 1
        raise ValueError("must be a number")
    return value


def _text(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError("must be text: put it in quotes")
    return value


Text = Annotated[str, BeforeValidator(_text)]
Int = Annotated[int, BeforeValidator(_no_boolean)]
Float = Annotated[float, BeforeValidator(_no_boolean)]
PositiveInt = Annotated[Int, Field(gt=0)]
Seconds = Annotated[Float, Field(gt=0, le=86_400)]
LocalPath = Annotated[str, AfterValidator(lambda text: absolute(text))]
FolderOrName = Annotated[str, AfterValidator(lambda text: folder_or_name(text))]
FileOrText = Annotated[str, AfterValidator(lambda text: file_or_text(text))]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are not changed after the check, secrets are not shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, masked(name or "", value)
