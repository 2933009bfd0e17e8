"""What the bodies of all requests have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from .unsupported import refuse_unsupported


class RequestModel(BaseModel):
    """Base of request bodies; fields not declared are kept, to be checked."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    not_honoured: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    prefix: ClassVar[str] = ""

    @property
    def wanted_model(self) -> str | None:
        """The model that is to answer; None is the first one there is."""
        return getattr(self, "model", None)

    @model_validator(mode="after")
    def _refuse(self) -> Any:
        refuse_unsupported(self.model_extra or {}, self.not_honoured, self.prefix)
        return self
