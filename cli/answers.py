"""Running prompts and showing what comes of them: one streamed, or many as a batch."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from halfbyte.errors import HalfbyteError, RequestError

from .console import (
    BatchBar,
    batch_bar,
    clean,
    is_terminal,
    note,
    note_block,
    one_line,
    print_error,
    terminal_width,
    wrapped,
)
from .loading import run_one
from .wrap import AnswerWriter

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.params import SamplingParams
    from ..engine.request import Completion
    from .asking import Asking

# Prompts handed to the engine at once: more than it runs, so that none of its rows waits for one.
_AHEAD = 64


def run_single(
    engine: Engine, prompt: str, params: SamplingParams, asking: Asking, as_json: bool
) -> bool:
    """Stream one answer, or show all choices at the end; True when it failed."""
    completion: Completion | None = None
    if params.choices > 1 and not as_json:
        return _run_choices(engine, prompt, params, asking)
    writer = AnswerWriter(sys.stdout)
    ids = asking.prompt(engine.tokenizer, prompt)
    try:
        for delta in run_one(engine, ids, asking.params(engine.tokenizer, params)):
            if not as_json:
                writer.write(delta.text)
            completion = delta.completion or completion
    except KeyboardInterrupt:
        writer.end()
        raise
    assert completion is not None
    if as_json:
        _print_json({"index": 0, "prompt": prompt, **completion.to_dict()})
    else:
        writer.end()
    if completion.finish_reason.value == "error":
        print_error(f"the answer failed: {one_line(completion.error or 'no details')}")
        return True
    note_block(speed_line(completion))
    for line in end_notes(completion, params, chat=asking.answers(engine.tokenizer)):
        note(line)
    return False


def _run_choices(engine: Engine, prompt: str, params: SamplingParams, asking: Asking) -> bool:
    """Show all choices for a prompt, when they are done; True when one failed."""
    ids = asking.prompt(engine.tokenizer, prompt)
    *_, last = run_one(engine, ids, asking.params(engine.tokenizer, params))
    completion = last.completion
    assert completion is not None
    failed = False
    for number, choice in enumerate(completion.choices or (completion,)):
        result = choice.to_dict()
        _print_one(f"answer {number}", result, False, number, first=number == 0)
        if choice.finish_reason.value == "error":
            print_error(f"answer {number} failed: {one_line(choice.error or 'no details')}")
            failed = True
    note_block(speed_line(completion))
    return failed


def run_batch(
    engine: Engine, prompts: list[str], params: SamplingParams, asking: Asking, as_json: bool
) -> bool:
    """Run all prompts as one batch and print each answer when it is done; True when one failed.

    A prompt that cannot be run is reported at once; the others go on.
    """
    params = asking.params(engine.tokenizer, params)
    live: dict[str, int] = {}
    failed = tokens = done = given = 0
    start = time.monotonic()
    with batch_bar(len(prompts)) as bar:

        def show(index: int, result: dict[str, Any]) -> None:
            nonlocal done
            with bar.aside(sys.stdout):
                _print_one(
                    f"prompt {index}",
                    {"prompt": prompts[index], **result},
                    as_json,
                    index,
                    first=done == 0,
                )
            done += 1

        while done < len(prompts):
            while given < len(prompts) and len(live) < _AHEAD:
                index, given = given, given + 1
                try:
                    ids = asking.prompt(engine.tokenizer, prompts[index])
                    live[engine.submit(ids, params)] = index
                except HalfbyteError as error:
                    failed += 1
                    _report(bar, index, error)
                    code = error.code if isinstance(error, RequestError) else type(error).__name__
                    show(index, {"error": error.message, "code": code})
            for delta in engine.step() if live else ():
                tokens += len(delta.token_ids)
                if delta.completion is not None and delta.request_id in live:
                    failed += delta.completion.finish_reason.value == "error"
                    show(live.pop(delta.request_id), delta.completion.to_dict())
            bar.update(done, tokens)
    seconds = time.monotonic() - start
    if tokens:
        note(
            f"{_count(len(prompts), 'prompt')}, {_count(tokens, 'token')} in {seconds:.2f} s: "
            f"{tokens / seconds:.1f} tok/s in all"
        )
    return failed > 0


def _report(bar: BatchBar, index: int, error: HalfbyteError) -> None:
    with bar.aside(sys.stderr):
        print_error(f"prompt {index}: {error.message}", error.hint)


def _print_one(
    title: str, result: dict[str, Any], as_json: bool, index: int, *, first: bool
) -> None:
    if as_json:
        # An answer's own index says which of the choices it is.
        _print_json({"index": index, **result} | {"index": index})
        return
    texts = [choice["text"] for choice in result.get("choices", ())]
    body = "\n".join(f"--> {i}: {t}" for i, t in enumerate(texts)) or result.get("text") or ""
    if is_terminal(sys.stdout):
        body = clean(body)
    head = ("" if first else "\n") + f"==> {title} <==\n"
    sys.stdout.write(head + body + ("" if body.endswith("\n") else "\n"))
    sys.stdout.flush()


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, ensure_ascii=False), flush=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def speed_line(completion: Completion) -> str:
    """Token counts and rates of one answer, in lines that fit the terminal."""
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
    lines: list[str] = [wrapped("", parts[0], indent=0)]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > terminal_width():
            lines.append(part)
        else:
            lines[-1] += f" | {part}"
    return "\n".join(lines)


def end_notes(completion: Completion, params: SamplingParams, *, chat: bool) -> list[str]:
    """Why an answer ended, where that is not plain: at once, or cut off."""
    reason = completion.finish_reason.value
    if reason == "length":
        if completion.usage.completion_tokens == params.max_tokens:
            said = _count(completion.usage.completion_tokens, "token")
            return [f"cut off after {said} (-n); -n -1 goes on to the end"]
        return ["cut off: the context is full"]
    if reason != "stop" or completion.text.strip():
        return []
    if isinstance(completion.stop_reason, str):
        return [f"no text: the answer began with the stop text {completion.stop_reason!r}"]
    remedy = "another wording may help" if chat else "without --raw it is answered as a message"
    return [f"no text: the model ended the answer at once; {remedy}, or --ignore-eos"]
