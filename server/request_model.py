"""What the bodies of all requests have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from .unsupported import refuse_unsupported


def given(name: str) -> dict[str, Any]:
    """JSON schema of an object that has a field, which is not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


class RequestModel(BaseModel):
    """Base of request bodies; fields not declared are kept, to be checked."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    not_honoured: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    prefix: ClassVar[str] = ""

    @property
    def wanted_model(self) -> str | None:
        """The model that is to answer; None is the first one there is."""
        return getattr(self, "model", None)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema of the fields, with the values that the known others may have."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).setdefault("properties", {})
        for name, values in cls.not_honoured.items():
            # JSON Schema knows no difference between 1 and 1.0, and wants each value once.
            once = [v for n, v in enumerate(values) if type(v) is not float or v not in values[:n]]
            properties.setdefault(name, {"enum": once})
        return schema

    @model_validator(mode="after")
    def _refuse(self) -> Any:
        refuse_unsupported(self.model_extra or {}, self.not_honoured, self.prefix)
        return self
