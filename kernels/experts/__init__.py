"""Between a router's scores and one product over all experts: who goes where, and back."""

from __future__ import annotations

from .op import Assignment, add_shares, arrange, gather_rows, route

__all__ = ["Assignment", "add_shares", "arrange", "gather_rows", "route"]
