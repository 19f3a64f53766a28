"""The engine for models that packed groups cannot serve: transformers' own generation, one prompt at a time.

Slow and simple; it exists so that such a model trains at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from posttrain.models import context_of, end_tokens, frozen_copy
from posttrain.multimodal import banned, inputs
from posttrain.rollout.engine import OnGroup, Progress
from posttrain.types import Completion, Sampling


class PlainEngine:
    def __init__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype):
        self.tokenizer = tokenizer
        self.ends = end_tokens(policy, tokenizer)
        self.context = context_of(policy)
        self.model = frozen_copy(policy, dtype)

    def rest(self) -> None:
        pass

    @torch.no_grad()
    def sync(self, policy: PreTrainedModel) -> None:
        if policy is not self.model:
            for mine, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
                mine.copy_(theirs)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[list[int]],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: Progress | None = None,
        on_group: OnGroup | None = None,
    ) -> list[list[Completion]]:
        out = []
        # A checkpoint's own generation_config may bring penalties and cuts that the trainer knows nothing of.
        config, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                if on_progress is not None:
                    on_progress(i * n, n * len(prompts))
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    out.append(self._group(prompt, n, sampling))
                if on_group is not None:
                    on_group(i, out[i])
        finally:
            self.model.generation_config = config
        return out

    def _group(self, prompt: list[int], n: int, sampling: Sampling) -> list[Completion]:
        greedy = sampling.temperature == 0
        ids = torch.tensor([prompt] * n, device=self.model.device)
        choice = (
            {}
            if greedy
            else {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p or None,
            }
        )
        model: Any = self.model  # transformers' types do not say that it generates
        out = model.generate(
            **inputs(self.model, ids, [prompt] * n),
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_tokens,
            do_sample=not greedy,
            eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_scores=True,
            suppress_tokens=banned(self.model) or None,
            **choice,
        )
        new = out.sequences[:, -len(out.scores) :]
        # Scores are the logits after temperature and truncation: what was drawn from.
        scores = torch.stack(out.scores, 1).float().log_softmax(-1)
        logprobs = scores.gather(2, new[..., None])[..., 0].tolist()
        return [self._completion(tokens, lps) for tokens, lps in zip(new.tolist(), logprobs, strict=True)]

    def _completion(self, tokens: list[int], logprobs: list[float]) -> Completion:
        stop = next((k for k, token in enumerate(tokens) if token in self.ends), None)
        end = len(tokens) if stop is None else stop + 1
        text = self.tokenizer.decode(tokens[:stop], skip_special_tokens=True)
        return Completion(tokens[:end], logprobs[:end], "length" if stop is None else "stop", str(text))
