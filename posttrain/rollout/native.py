"""The engine in this process: prompts prefilled once and expanded, finished rows leave the batch.

It keeps a low-precision copy of the policy (float32 master weights stay with the trainer), which `sync`
brings up to date; how the model is run is `forward`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import decoder
from posttrain.attention import DecodeLayout, KVCache, PackedLayout
from posttrain.models import context_of, end_tokens
from posttrain.rollout.engine import OnGroup, Progress
from posttrain.rollout.forward import Forward, Layers, Modules
from posttrain.rollout.sampling import draw
from posttrain.types import Completion, Sampling

GROW = 32  # columns by which the cache grows
KEEP = 0.8  # finished rows are dropped from the batch once fewer than this share of it is alive


class NativeEngine:
    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        dtype: torch.dtype,
        rows: int = 128,
        layers: list[decoder.Layer] | None = None,
    ):
        """
        Args:
            dtype: of the weights and the cache while generating.
            rows: most completions decoded at once.
            layers: of the policy, where posttrain.decoder serves it (train.logprobs.Policy finds them).
        """
        self.tokenizer = tokenizer
        self.device, self.dtype = policy.device, dtype
        self.context = context_of(policy)
        self.ends = torch.tensor(end_tokens(policy, tokenizer), device=policy.device)
        self.rows = rows
        with torch.no_grad():
            self.model: Forward = Layers(policy, layers, dtype) if layers else Modules(policy, dtype)
        text = policy.config.get_text_config()
        self.depth: int = text.num_hidden_layers
        self.kv_heads: int = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        self.head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    def rest(self) -> None:
        self.model.rest()

    @torch.no_grad()
    def sync(self, policy: PreTrainedModel) -> None:
        self.model.sync(policy)

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
        out: list[list[Completion]] = [[] for _ in prompts]
        done, total = 0, n * len(prompts)
        # Prompts of like length share a batch, so that little of the cache is padding.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        step = max(1, self.rows // n)
        for first in range(0, len(order), step):
            some = order[first : first + step]
            for which in _parts(n, self.rows):
                report = None if on_progress is None else (lambda k, done=done: on_progress(done + k, total))
                uniform = torch.stack([_uniform(seeds[i], n, sampling.max_tokens)[which] for i in some])

                def take(k: int, completions: list[Completion], some=some) -> None:
                    mine = out[some[k]]
                    mine += completions
                    if on_group is not None and len(mine) == n:
                        on_group(some[k], mine)

                self._batch([prompts[i] for i in some], uniform, sampling, report, take)
                done += uniform.shape[0] * uniform.shape[1]
        return out

    def stops(self, token: Tensor, rows: Tensor, t: int) -> Tensor:
        """Which live completions end with their t-th token; token, and rows of the batch: [live]."""
        return torch.isin(token, self.ends)

    def keeps(self, alive: Tensor) -> Tensor:
        """Which rows stay in the batch, given which of them go on; [live] both."""
        return alive if int(alive.sum()) < KEEP * len(alive) else torch.ones_like(alive)

    def _batch(self, prompts, uniform: Tensor, sampling: Sampling, report, on_group: OnGroup) -> None:
        """uniform: [prompts, n, R], the randomness of every token of the n completions of each prompt.

        Hands each prompt's n completions to `on_group` when the last of them has ended.
        """
        device = self.device
        S, n, R = uniform.shape
        B = S * n
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        uniform = uniform.view(B, R).to(device)
        hidden, cache, of = self._prefill(prompts, n)
        P = cache.length
        positions = lengths.repeat_interleave(n)
        hide = torch.finfo(hidden.dtype).min
        bias = torch.zeros(B, P, dtype=hidden.dtype, device=device)
        bias.masked_fill_(torch.arange(P, device=device) >= positions[:, None], hide)

        tokens = torch.zeros(B, R, dtype=torch.long, device=device)
        logprobs = torch.zeros(B, R, device=device)
        taken = torch.full((B,), R, device=device)  # tokens of each row; R until it ends
        ended = torch.zeros(B, dtype=torch.bool, device=device)
        rows = torch.arange(B, device=device)  # which completion each row of the live batch is
        told = torch.zeros(S, dtype=torch.bool, device=device)  # groups that were handed over

        def hand_over(groups: Tensor) -> None:
            for k in groups.nonzero()[:, 0].tolist():
                g = slice(k * n, (k + 1) * n)
                on_group(k, self._completions(tokens[g], logprobs[g], taken[g], ended[g]))
            told.logical_or_(groups)

        for t in range(R):
            token, logprob = draw(self.model.logits(hidden), uniform[rows, t], sampling)
            tokens[rows, t], logprobs[rows, t] = token, logprob
            stopped = self.stops(token, rows, t) & ~ended[rows]
            if stopped.any():
                ended[rows[stopped]] = True
                taken[rows[stopped]] = t + 1
                hand_over(ended.view(S, n).all(1) & ~told)
                if report is not None:
                    report(int(ended.sum()))
                alive = ~ended[rows]
                if not alive.any():
                    break
                keep = self.keeps(alive)
                if not keep.all():
                    of = (torch.arange(len(keep), device=device) if of is None else of)[keep]
                    rows, token, bias, positions = rows[keep], token[keep], bias[keep], positions[keep]
            elif report is not None:
                report(int(ended.sum()))
            if t + 1 < R:
                more = min(GROW, R - 1 - t) if P + t == cache.length else 0
                if of is not None or more:
                    cache, of = cache.rows(of, more), None
                    bias = F.pad(bias, (0, more), value=hide)
                bias[:, P + t] = 0
                layout = DecodeLayout(cache, bias, P + t)
                hidden = self.model.hidden(token[:, None], positions[:, None], layout)[:, 0]
                positions = positions + 1
        hand_over(~told)
        if report is not None:
            report(B)

    def _prefill(self, prompts: Sequence[list[int]], n: int) -> tuple[Tensor, KVCache, Tensor | None]:
        """Run every prompt once, packed: the last hidden state of each of its n rows [B, H], a cache with a
        row a prompt, and which of those each of the B begins with.

        Prompts that follow each other and are the same are one."""
        device = self.device
        new = [i for i, prompt in enumerate(prompts) if i == 0 or prompt != prompts[i - 1]]
        copies = [n * (end - first) for first, end in pairwise([*new, len(prompts)])]
        repeat = torch.tensor(copies, device=device)
        prompts = [prompts[i] for i in new]
        lengths = [len(p) for p in prompts]
        S, P = len(prompts), max(lengths)
        layout = PackedLayout.of(lengths, [[] for _ in prompts], device)
        layout.capture = self._cache(S, P)
        tokens = torch.tensor([t for p in prompts for t in p], device=device)[None]
        positions = torch.cat([torch.arange(k, device=device) for k in lengths])[None]
        pictures = self.model.seen(prompts, [span.start for span in layout.spans])
        hidden = self.model.hidden(tokens, positions, layout, pictures)[0]
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        of = torch.arange(S, device=device).repeat_interleave(repeat)
        return hidden[last].index_select(0, of), layout.capture, of

    def _cache(self, rows: int, length: int) -> KVCache:
        shape = (rows, self.kv_heads, length, self.head_dim)
        make = lambda: [  # noqa: E731
            torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(self.depth)
        ]
        return KVCache(make(), make())

    def _completions(
        self, tokens: Tensor, logprobs: Tensor, taken: Tensor, ended: Tensor
    ) -> list[Completion]:
        """tokens, logprobs [n, R]; taken, ended [n]."""
        ids, lps = tokens.tolist(), logprobs.tolist()
        out: list[Completion] = []
        for i, (k, stop) in enumerate(zip(taken.tolist(), ended.tolist(), strict=True)):
            said = ids[i][: k - 1] if stop else ids[i][:k]
            text = self.tokenizer.decode(said, skip_special_tokens=True)
            out.append(Completion(ids[i][:k], lps[i][:k], "stop" if stop else "length", str(text)))
        return out


def _parts(n: int, rows: int) -> list[slice]:
    """The n completions of a prompt in batches of at most `rows`."""
    return [slice(first, min(first + rows, n)) for first in range(0, n, rows)]


def _uniform(seed: int, n: int, length: int) -> Tensor:
    """[n, length] numbers in [0, 1) from the seed alone, so that a row's draws do not depend on its batch."""
    return torch.rand(n, length, generator=torch.Generator().manual_seed(seed))
