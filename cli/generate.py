"""``halfbyte generate``: answer one prompt, streamed, or many as one batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as opt
from .console import clean, is_terminal, note, one_line, print_error
from .loading import open_engine, run_one

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.request import Completion, SamplingParams

INPUT_LIMIT = 64 << 20
"""Most bytes that a prompt file or stdin may hold."""


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="Text, or - for stdin (also read when piped)."),
    ] = None,
    model: opt.Model = "smollm2",
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from a UTF-8 file."),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Every line is a prompt; run them as one batch.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, and no other text.")
    ] = False,
    chat: Annotated[
        bool,
        typer.Option("--chat/--raw", help="Apply the model's chat template, or continue the text."),
    ] = False,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", help="Most tokens to generate.")
    ] = 256,
    temperature: opt.Temperature = opt.TEMPERATURE,
    top_k: opt.TopK = opt.TOP_K,
    top_p: opt.TopP = opt.TOP_P,
    min_p: opt.MinP = opt.MIN_P,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    presence_penalty: opt.PresencePenalty = 0.0,
    frequency_penalty: opt.FrequencyPenalty = 0.0,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    ignore_eos: opt.IgnoreEos = False,
    device: opt.Device = opt.DeviceChoice.auto,
    dtype: opt.DType = opt.DTypeChoice.auto,
    backend: opt.Backend = opt.BackendChoice.auto,
    max_context: opt.MaxContext = 0,
    threads: opt.Threads = 0,
    exact: opt.Exact = False,
    no_native: opt.NoNative = False,
    quantize: opt.Quantize = None,
) -> None:
    """Continue a text, or answer it with --chat.

    The text goes to stdout as it comes, the speed to stderr.

    The sampling defaults are those that llama.cpp users know.

    For a repeatable run give --seed, or --temperature 0.
    """
    from ..engine.request import SamplingParams

    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )
    engine_options = opt.engine_options(
        device, dtype, backend, max_context, threads, exact, no_native, quantize
    )
    prompts = _prompts(_read_prompt(prompt, file), lines)
    _check_prompts(prompts)
    with open_engine(model, engine_options) as engine:
        if len(prompts) == 1 and not lines:
            failed = _run_single(engine, prompts[0], params, chat, as_json)
        else:
            failed = _run_batch(engine, prompts, params, chat, as_json)
    if failed:
        raise typer.Exit(1)


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """The text to work on. Raises RequestError, or a usage error when there is none."""
    if prompt is not None and file is not None:
        raise typer.BadParameter("give PROMPT or --file, not both")
    if file is not None:
        from halfbyte.errors import RequestError

        try:
            with file.open("rb") as handle:
                data = handle.read(INPUT_LIMIT + 1)
        except OSError as error:
            raise RequestError(
                f"cannot read prompt file {file}: {error.strerror or error}", param="file"
            ) from error
        return _decode(data, str(file))
    if prompt == "-" or (prompt is None and not is_terminal(sys.stdin)):
        return _decode(sys.stdin.buffer.read(INPUT_LIMIT + 1), "stdin")
    if prompt is None:
        raise typer.BadParameter("no prompt: give PROMPT, --file FILE, or pipe text in")
    return prompt


def _decode(data: bytes, where: str) -> str:
    """UTF-8 text without the line end that editors and ``echo`` add.

    Raises RequestError naming the offset of the first bad byte, or the size when it is too big.
    """
    from halfbyte.errors import RequestError

    if len(data) > INPUT_LIMIT:
        raise RequestError(f"{where} has more than {INPUT_LIMIT >> 20} MiB of text", param="prompt")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{where} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}",
            param="prompt",
            hint="convert it, for example with iconv -t UTF-8",
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


def _prompts(text: str, lines: bool) -> list[str]:
    """The text as one prompt, or one for each line that is not blank."""
    if not lines:
        return [text]
    found = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not found:
        from halfbyte.errors import RequestError

        raise RequestError("--lines found no line with text", param="prompt")
    return found


def _check_prompts(prompts: list[str]) -> None:
    """Refuse what no model could run, before one is loaded. Raises RequestError."""
    from halfbyte.errors import RequestError

    for text in prompts:
        if not text:
            raise RequestError("the prompt is empty", param="prompt", hint="give some text")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise RequestError("the prompt is not valid UTF-8", param="prompt")


def _ids(engine: Engine, prompt: str, chat: bool) -> str | list[int]:
    if not chat:
        return prompt
    return engine.tokenizer.encode_chat([{"role": "user", "content": prompt}])


def _run_single(
    engine: Engine, prompt: str, params: SamplingParams, chat: bool, as_json: bool
) -> bool:
    """Stream one answer; True when it failed."""
    completion: Completion | None = None
    try:
        for delta in run_one(engine, _ids(engine, prompt, chat), params):
            if delta.text and not as_json:
                write_text(delta.text)
            completion = delta.completion or completion
    except KeyboardInterrupt:
        if not as_json:
            write_text("\n")
        raise
    assert completion is not None
    if as_json:
        _print_json({"index": 0, **completion.to_dict()})
    elif not completion.text.endswith("\n"):
        write_text("\n")
    return _report(completion)


def _run_batch(
    engine: Engine, prompts: list[str], params: SamplingParams, chat: bool, as_json: bool
) -> bool:
    """Run all prompts as one batch and print in order; True when one or more failed.

    A prompt that cannot be run is reported in its place; the others go on.
    """
    from halfbyte.errors import HalfbyteError, RequestError

    waiting: dict[str, int] = {}
    ready: dict[int, dict[str, Any]] = {}
    for index, prompt in enumerate(prompts):
        try:
            waiting[engine.submit(_ids(engine, prompt, chat), params)] = index
        except HalfbyteError as error:
            code = error.code if isinstance(error, RequestError) else type(error).__name__
            print_error(f"prompt {index}: {error.message}", error.hint)
            ready[index] = {"error": error.message, "code": code}
    printed = failed = tokens = 0
    seconds = 0.0
    while printed < len(prompts):
        while printed in ready:
            _print_one(printed, len(prompts), ready.pop(printed), as_json)
            printed += 1
        if printed == len(prompts):
            break
        for delta in engine.step():
            done = delta.completion
            if done is not None and delta.request_id in waiting:
                ready[waiting.pop(delta.request_id)] = done.to_dict()
                tokens += done.usage.completion_tokens
                seconds = max(seconds, done.timings.total_s)
                failed += done.finish_reason.value == "error"
    if seconds > 0:
        note(
            f"{len(prompts)} prompts, {tokens} tokens in {seconds:.2f} s: "
            f"{tokens / seconds:.1f} tok/s in all"
        )
    return failed > 0


def _print_one(index: int, count: int, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json({"index": index, **result})
        return
    body = result.get("text") or ""
    write_text(f"==> prompt {index} <==\n{body}" + ("" if body.endswith("\n") else "\n"))
    if index + 1 < count:
        write_text("\n")


def _print_json(data: dict[str, Any]) -> None:
    import json

    print(json.dumps(data, ensure_ascii=False), flush=True)


def write_text(text: str) -> None:
    """Write a piece of generated text now; a terminal gets no control characters from it."""
    sys.stdout.write(clean(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def _report(completion: Completion) -> bool:
    """Speed to stderr; True when the answer ended with an error."""
    if completion.finish_reason.value == "error":
        print_error(f"the answer failed: {one_line(completion.error or 'no details')}")
        return True
    note(speed_line(completion))
    return False


def speed_line(completion: Completion) -> str:
    """Token counts and rates of one answer, in under 80 columns."""
    usage, times = completion.usage, completion.timings
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [f"prompt {usage.prompt_tokens} tok{cached}"]
    if times.prefill_tok_s:
        parts[0] += f" at {times.prefill_tok_s:.0f}/s"
    parts.append(f"answer {usage.completion_tokens} tok")
    if times.decode_tok_s:
        parts[1] += f" at {times.decode_tok_s:.1f}/s"
    if times.ttft_s:
        parts.append(f"first after {times.ttft_s:.2f} s")
    parts.append(completion.finish_reason.value)
    return " | ".join(parts)
