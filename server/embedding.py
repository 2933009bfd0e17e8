"""POST /v1/embeddings, over what the service offers for reading prompts."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from halfbyte.errors import RequestError

from ..engine.request import PromptReader
from .job import Call
from .responses import EmbeddingItem, EmbeddingList, EmbeddingUsage
from .schema import EmbeddingRequest
from .service import OpenAIService
from .texts import TextWork

if TYPE_CHECKING:
    from torch import Tensor


async def embed_texts(
    service: OpenAIService, request: EmbeddingRequest, call: Call
) -> EmbeddingList:
    """A vector for each text. Raises RequestError for an empty one."""
    from ..engine.run.readers import PoolingReader

    name = service.served(request.model)
    readers = [PoolingReader(request.pooling or "mean") for _ in request.prompts()]

    async def prepare(texts: TextWork) -> list[tuple[list[int], PromptReader]]:
        ids = await service.prompt_ids(request, 0)
        for index, prompt in enumerate(ids):
            texts.check(prompt, "input")
            if not prompt:
                raise RequestError(f"input[{index}] is empty: it has no token", param="input")
        return list(zip(ids, readers, strict=True))

    await service.read(request, call, len(readers), prepare)
    vectors = [reader.pooled(normalize=request.normalize is not False) for reader in readers]
    return EmbeddingList(
        data=[
            EmbeddingItem(index=index, embedding=_encoded(vector, request.encoding_format))
            for index, vector in enumerate(vectors)
        ],
        model=name,
        usage=EmbeddingUsage(prompt_tokens=call.prompt_tokens, total_tokens=call.prompt_tokens),
    )


def _encoded(vector_D: Tensor, encoding: str | None) -> list[float] | str:
    """A vector [D] as numbers, or as base64 of its little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode()
    return vector_D.tolist()
