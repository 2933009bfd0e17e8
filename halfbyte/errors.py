"""Every error that Halfbyte raises on purpose.

A message names the thing (file, tensor, field), the value found, the value expected and the
remedy. This module imports nothing, so every other one may import it.
"""

from __future__ import annotations


class HalfbyteError(Exception):
    """Base of all errors raised for user input, checkpoints, requests and hardware.

    Args:
        message: what is wrong, in one sentence that names the thing and the value found.
        hint: what to do about it; empty when the message already says so.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message} ({hint})" if hint else message)


def described(error: BaseException) -> str:
    """Type and text of an error, even of one whose own text fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


class ConfigError(HalfbyteError):
    """An engine option has a value that cannot be honoured."""


class ModelNotFoundError(HalfbyteError):
    """No model at this path, under this name or in this repository."""


class CheckpointError(HalfbyteError):
    """A model file is damaged, crafted, inconsistent or incomplete."""


class UnsupportedModelError(HalfbyteError):
    """The checkpoint is sound, but its architecture or a config value is not implemented."""


class UnsupportedWeightError(HalfbyteError):
    """No kernel of the chosen backend can run a weight; lists each candidate's reason."""


class KernelInputError(HalfbyteError, ValueError):
    """A kernel was called with shapes, dtypes, strides or a device that it cannot take."""


class TokenizerError(HalfbyteError):
    """The tokenizer or chat template is missing, damaged or not supported."""


class TemplateError(TokenizerError):
    """A chat template failed, or exceeded its time or output limit."""


class TemplateProcessError(TokenizerError):
    """The process that renders chat templates cannot start, or ended; the next use starts it."""


class RenderProcessError(HalfbyteError):
    """The process that renders Markdown cannot start, or ended; the next use starts it."""


class RequestError(HalfbyteError):
    """A request cannot be run as asked.

    Args:
        message: what is wrong.
        param: the request field at fault, as the user spelled it, or None.
        code: a short machine-readable code such as ``context_length_exceeded``.
        hint: what to do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code


class GrammarError(HalfbyteError):
    """A grammar went past its limits while a text was generated; ends that request alone."""


class GrammarProcessError(HalfbyteError):
    """The process that checks grammars cannot start, or ended; the next use starts it."""


class QuantizeError(HalfbyteError):
    """A matrix cannot be quantized: its statistics or its weights do not allow it."""


class DownloadError(HalfbyteError):
    """A model could not be fetched or did not match its checksum."""


class ResultFileError(HalfbyteError):
    """A file of measurements is damaged, foreign or of another version, or cannot be compared."""


class EngineDeadError(HalfbyteError):
    """The engine stopped after an unrecoverable failure; no request can be served."""
