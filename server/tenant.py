"""Whose request it is: what an API key stands for.

A `Tenant` comes from the gate and goes with the request's record to the service, which asks it
for rights and for the tenant's namespace in the prefix cache.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import ApiError
from .quota import Quota, QuotaLimits

OPEN_PATHS = frozenset({"/health", "/v1/health", "/ready", "/version"})
"""What anybody may ask for, without a key."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One who sends requests.

    Attributes:
        namespace: of the prefix cache; what one tenant sent never shortens another's prefill,
            which would tell what the other has sent. Empty on a server without keys.
        may_prioritize: whether requests may have a ``priority``.
        may_manage: whether requests may load and unload models.
        quota: what is left to it; None is no bound.
    """

    namespace: str = ""
    may_prioritize: bool = True
    may_manage: bool = False
    quota: Quota | None = None

    def priority(self, asked: int | None) -> int:
        """The scheduling priority of a request that asks for ``asked``.

        Raises:
            ApiError: 403, the tenant must not choose one.
        """
        if asked and not self.may_prioritize:
            raise ApiError(
                403,
                f"priority is {asked}, but this API key has no right to it; "
                "the server gives that right to the keys of --priority-key.",
                param="priority",
                code="priority_not_allowed",
            )
        return asked or 0

    def check_manages(self) -> None:
        """Whether the tenant may load and unload models.

        Raises:
            ApiError: 403.
        """
        if not self.may_manage:
            raise ApiError(
                403,
                "Only keys of --admin-key load and unload models; any request loads the model "
                "that it names.",
                code="management_not_allowed",
            )

    def cache_salt(self, asked: str | None) -> str:
        """The engine's cache salt: the tenant's namespace, divided by the request's own salt."""
        # A namespace has no colon, so no two pairs give the same text.
        return self.namespace if asked is None else f"{self.namespace}:{asked}"


class Keyring:
    """The API keys of a server, kept as hashes only.

    Args:
        keys: any of these lets a request in; without any, everybody is let in.
        priority_keys: keys that let in as well and give the right to a ``priority``. On a server
            without any keys everybody has that right.
        admin_keys: keys that let in as well, with that right and the one to load and unload models.
        limits: of each of ``keys``; the others have none.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        priority_keys: Iterable[str] = (),
        admin_keys: Iterable[str] = (),
        limits: QuotaLimits | None = None,
    ) -> None:
        self._tenants: dict[bytes, Tenant] = {}
        bounded = limits is not None and limits != QuotaLimits()
        groups = ((keys, False, False), (priority_keys, True, False), (admin_keys, True, True))
        for group, may_prioritize, may_manage in groups:
            for key in group:
                digest = hashlib.sha256(key.encode())
                quota = Quota(limits) if limits and bounded and group is keys else None
                self._tenants[digest.digest()] = Tenant(
                    digest.hexdigest(), may_prioritize, may_manage, quota
                )

    def of(self, namespace: str) -> Tenant:
        """Who has this namespace, without the rights of a key: for what is done in its name.

        One whose key is gone has no bound any more.
        """
        known = {tenant.namespace: tenant for tenant in self._tenants.values()}
        quota = known[namespace].quota if namespace in known else None
        return Tenant(namespace, may_prioritize=False, quota=quota)

    @property
    def open(self) -> bool:
        """Whether everybody is let in."""
        return not self._tenants

    def tenant(self, authorization: str, api_key: str = "") -> Tenant:
        """Who sends a request with this Authorization header.

        Args:
            authorization: value of that header, empty where there is none.
            api_key: of the header ``x-api-key``, which is read where there is no other.

        Raises:
            ApiError: 401, no key or an unknown one.
        """
        if self.open:
            return Tenant()
        scheme, _, key = (authorization or f"bearer {api_key}").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(
                401, "No API key given; send the header Authorization: Bearer KEY (or x-api-key)."
            )
        given = hashlib.sha256(key.strip().encode("latin-1")).digest()
        # Hashes have one length and every key is compared: time tells nothing about the keys.
        found = [who for known, who in self._tenants.items() if hmac.compare_digest(given, known)]
        if not found:
            raise ApiError(401, "The API key is not valid here.")
        return found[0]
