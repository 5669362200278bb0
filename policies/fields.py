"""Reading raw documents field by field, noting every problem with its path instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec


class FieldProblem(msgspec.Struct, frozen=True, order=True):
    """`path` as the API server writes it: spec.ingress[0].from[1].ipBlock.cidr. Empty: the document itself."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidPolicy(ValueError):
    """Everything that is wrong with one document."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class Field:
    """A value in a document, with its path. Accessors note a problem and give an empty value on a wrong type.

    A field that is null counts as absent, as it does for the API server.
    """

    __slots__ = ("path", "problems", "value")

    def __init__(self, value: Any, path: str, problems: list[FieldProblem]) -> None:
        self.value = value
        self.path = path
        self.problems = problems

    @property
    def given(self) -> bool:
        return self.value is not None

    def problem(self, message: str) -> None:
        self.problems.append(FieldProblem(self.path, message))

    def check(self, message: str | None) -> bool:
        """Note a problem if there is one; True if there is none."""
        if message is not None:
            self.problem(message)
        return message is None

    def get(self, name: str) -> Field:
        """A member of an object; absent where this is none."""
        value = self.value.get(name) if isinstance(self.value, Mapping) else None
        return Field(value, f"{self.path}.{name}" if self.path else name, self.problems)

    def expect_object(self, known: Collection[str]) -> bool:
        """Whether this is an object (null is an empty one). Members that are not `known` are problems."""
        if self.value is None:
            return True
        if not isinstance(self.value, Mapping):
            self.problem(f"must be an object, not {_kind(self.value)}")
            return False
        for name in self.value:
            if name not in known:
                self.get(str(name)).problem(f"unknown field{_suggestion(str(name), known)}")
        return True

    def items(self) -> Iterator[Field]:
        """Elements of a list (null is an empty one)."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            self.problem(f"must be a list, not {_kind(self.value)}")
            return
        for index, value in enumerate(self.value):
            yield Field(value, f"{self.path}[{index}]", self.problems)

    def string(self) -> str | None:
        """None where it is absent or no string."""
        if self.value is None or isinstance(self.value, str):
            return self.value
        hint = " (put it in quotes)" if isinstance(self.value, bool | int | float) else ""
        self.problem(f"must be a string, not {_kind(self.value)}{hint}")
        return None

    def integer(self) -> int | None:
        """None where it is absent or no integer."""
        if self.value is None or (isinstance(self.value, int) and not isinstance(self.value, bool)):
            return self.value
        self.problem(f"must be an integer, not {_kind(self.value)}")
        return None

    def boolean(self) -> bool | None:
        """None where it is absent or no boolean."""
        if self.value is None or isinstance(self.value, bool):
            return self.value
        self.problem(f"must be true or false, not {_kind(self.value)}")
        return None

    def refuse(self, why: str = "is not supported") -> None:
        """Note a problem if the field is given: one that is known, and not enforced."""
        if self.given:
            self.problem(why)

    def string_map(self) -> dict[str, str]:
        """String to string, as labels are; members that are not are problems and left out."""
        if self.value is None:
            return {}
        if not isinstance(self.value, Mapping):
            self.problem(f"must be an object, not {_kind(self.value)}")
            return {}
        out: dict[str, str] = {}
        for key in self.value:
            field = Field(self.value[key], f"{self.path}[{key}]", self.problems)
            if not isinstance(key, str):
                field.problem(f"the key must be a string, not {_kind(key)} (put it in quotes)")
            elif field.value is None:
                field.problem('must be a string, not null (write "" for an empty one)')
            elif (value := field.string()) is not None:
                out[key] = value
        return out


def _kind(value: Any) -> str:
    """How YAML calls a value's type."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _suggestion(name: str, known: Collection[str]) -> str:
    """The field that was meant, where only case differs."""
    meant = [k for k in known if k.lower() == name.lower()]
    return f", did you mean {meant[0]}?" if meant else ""
