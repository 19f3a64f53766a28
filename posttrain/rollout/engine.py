"""What a rollout engine is. The native one and vLLM's implement this; loop and evaluation only see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from posttrain.types import Completion, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]  # (completions finished, completions asked for); may raise to stop
OnGroup = Callable[[int, list[Completion]], None]  # (which prompt, all of its completions)


class Engine(Protocol):
    context: int | None
    """Most tokens that the model takes, prompt and completion together; None: not known."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: Progress | None = None,
        on_group: OnGroup | None = None,
    ) -> list[list[Completion]]:
        """Continue each prompt n times.

        The same prompt, seed, sampling and weights give the same completions, up to the rounding differences
        that other rows in the batch cause.

        Args:
            prompts: token ids of each prompt, none empty.
            seeds: one a prompt.
            on_group: called once a prompt, in this thread, as soon as all of its completions have ended, with
                the list that is returned for it.

        Returns:
            For each prompt, in order, its n completions.
        """
        ...

    def rest(self) -> None:
        """Give back the memory that only generating needs. The next `sync` takes it again."""
        ...

    def sync(self, policy: PreTrainedModel) -> None:
        """Take over the policy's weights."""
        ...
