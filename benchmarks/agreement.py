"""Do two engines say the same, greedily? Two files of answers, token by token.

    python -m benchmarks.agreement draw native FILE     # or vllm, where that is installed
    python -m benchmarks.agreement compare FILE FILE

SmolLM2-135M on questions of chain_sum. An answer agrees up to the first token that differs; from there on the
two engines read different texts and nothing can be compared any more. One rounding apart is enough for that,
where two tokens are as likely: the second figure takes the first file's text as given and counts how often
the other engine's choice after each of its prefixes would have been the same token, by a plain forward.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.harness.answer import Answer, requests_for
from posttrain.harness.records import Answers, read_answers
from posttrain.types import Prompt, Sampling

MODEL, QUESTIONS, TOKENS = "smollm2-135m", 64, 128
ENOUGH = 0.98


def agreement(
    one: Sequence[Answer], other: Sequence[Answer], encode: Callable[[str], list[int]]
) -> dict[str, Any]:
    """How far the answers to the same samples agree.

    Returns:
        "answers", "same": how many both have, and how many of those are the same to the last token
        "tokens", "agreeing", "share": tokens of the longer answer of each two; those before the first that
            differs; agreeing / tokens
        "differences": of each other answer {"id", "sample", "at": how many tokens agree, "one", "other": what
            each says from there on}
        "alone": samples that only one of them has
    """
    theirs = {answer.key: answer for answer in other if answer.finish != "error"}
    ours = {answer.key: answer for answer in one if answer.finish != "error"}
    tokens = agreeing = 0
    differences: list[dict[str, Any]] = []
    both = [key for key in ours if key in theirs]
    for key in both:
        a, b = encode(ours[key].completion), encode(theirs[key].completion)
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        tokens += max(len(a), len(b))
        agreeing += at
        if a != b:
            texts = (ours[key].completion, theirs[key].completion)
            first = next(
                (i for i, (x, y) in enumerate(zip(*texts, strict=False)) if x != y), min(map(len, texts))
            )
            said = [text[first : first + 60] for text in texts]
            differences.append({"id": key[0], "sample": key[1], "at": at, "one": said[0], "other": said[1]})
    return {
        "answers": len(both),
        "same": len(both) - len(differences),
        "tokens": tokens,
        "agreeing": agreeing,
        "share": agreeing / tokens if tokens else 1.0,
        "differences": differences,
        "alone": len(ours) + len(theirs) - 2 * len(both),
    }


def forced(
    answers: Sequence[Answer], prompts: dict[str, Prompt], model: Any, tokenizer: Any
) -> dict[str, Any]:
    """How often the model's likeliest token after each prefix of an answer is the answer's own next token.

    Returns:
        "tokens", "agreeing", "share", and "gaps": for each other token, by how many nats the model prefers
        its own choice; near 0 is a tie that rounding decides.
    """
    import torch

    from posttrain import models

    tokens, gaps = 0, []
    for answer in answers:
        before = models.encode(tokenizer, prompts[answer.id].content)
        said = tokenizer.encode(answer.completion, add_special_tokens=False)
        if not said:
            continue
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + said]), use_cache=False).logits[0]
        logps = logits[len(before) - 1 : -1].float().log_softmax(-1)
        mine = logps.gather(1, torch.tensor(said)[:, None])[:, 0]
        gap = logps.max(-1).values - mine
        tokens += len(said)
        gaps += gap[gap > 0].tolist()
    agreeing = tokens - len(gaps)
    share = agreeing / tokens if tokens else 1.0
    return {"tokens": tokens, "agreeing": agreeing, "share": share, "gaps": sorted(gaps)}


def questions(count: int) -> dict[str, Prompt]:
    from benchmarks.work import Job, recipe
    from posttrain import data

    rows = data.load(recipe(Job(MODEL, count, TOKENS, 1)).data)[0]
    return {prompt.id: prompt for prompt in rows}


def draw(engine: str, path: Path, count: int, compute: str) -> dict[str, Any]:
    """Answer the questions greedily, those that the file lacks."""
    from posttrain.recipe import Model

    prompts = questions(count)
    if engine == "vllm":
        from posttrain.harness.vllm import VllmAnswerer

        answerer: Any = VllmAnswerer(MODEL, compute, context=1024)
    else:
        from posttrain.harness.native import native

        answerer = native(Model.model_validate({"name": MODEL, "compute": compute}))
    began = time.perf_counter()
    with Answers(path) as answers:
        wanted = requests_for(answers.missing(list(prompts), 1), prompts, 0)
        answerer.answer(wanted, Sampling(TOKENS, temperature=0.0), answers.add)
    return answerer.describe() | {"seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--compute", default="float32")
    parts = parser.add_subparsers(dest="part", required=True)
    drawing = parts.add_parser("draw")
    drawing.add_argument("engine", choices=["native", "vllm"])
    drawing.add_argument("file", type=Path)
    comparing = parts.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs=2)
    asked = parser.parse_args()
    if asked.part == "draw":
        print(json.dumps(draw(asked.engine, asked.file, asked.questions, asked.compute), indent=2))
        return
    from posttrain import models

    model, tokenizer = models.load(MODEL)
    one, other = map(read_answers, asked.files)
    found = agreement(one, other, lambda text: tokenizer.encode(text, add_special_tokens=False))
    found["forced"] = forced(one, questions(asked.questions), model.eval(), tokenizer)
    found["enough"] = found["forced"]["share"] >= ENOUGH
    print(json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
