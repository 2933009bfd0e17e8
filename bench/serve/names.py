"""What may be chosen by name, apart from what takes time to import."""

from __future__ import annotations

from typing import Literal

ServeBackend = Literal["openai", "openai-chat", "vllm"]
"""How requests are written; the names are those of ``vllm bench serve``, where ``vllm`` is
``openai`` as well.
"""

WorkloadName = Literal["random", "chat", "prefix_repetition", "custom"]
"""What is asked; see :mod:`.workload`."""
