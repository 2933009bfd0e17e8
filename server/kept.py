"""Responses that later ones may go on from, in memory, until there is no room for them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from .json_bytes import json_bytes


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """One response, not to be changed.

    Attributes:
        response: its body.
        messages: the conversation that it ended, its own answer included, without instructions.
        size: of both as JSON, bytes.
    """

    response: dict[str, Any]
    messages: list[dict[str, Any]]
    size: int


class KeptResponses:
    """The responses of a server, each known to the tenant that asked for it alone.

    When there are too many bytes of them, those go that were not looked at for the longest.

    Args:
        most: bytes of all of them, as JSON.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._kept: OrderedDict[tuple[str, str], KeptResponse] = OrderedDict()

    @property
    def held(self) -> int:
        """Bytes of all that is kept."""
        return self._held

    def keep(
        self, tenant: str, id: str, response: dict[str, Any], messages: list[dict[str, Any]]
    ) -> None:
        """Keep a response; one that is larger than all may be together is not kept.

        Args:
            tenant: namespace of who asked for it.
            id: of the response.
            response: its body, not changed any more.
            messages: the conversation that it ended, not changed any more.
        """
        self.drop(tenant, id)
        size = len(json_bytes([response, messages]))
        if size > self._most:
            return
        self._kept[tenant, id] = KeptResponse(response, messages, size)
        self._held += size
        while self._held > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._held -= oldest.size

    def get(self, tenant: str, id: str) -> KeptResponse | None:
        """A response of this tenant's, which counts as looked at; None where it is not known."""
        found = self._kept.get((tenant, id))
        if found is not None:
            self._kept.move_to_end((tenant, id))
        return found

    def drop(self, tenant: str, id: str) -> bool:
        """Forget a response; False where it is not known."""
        found = self._kept.pop((tenant, id), None)
        self._held -= 0 if found is None else found.size
        return found is not None
