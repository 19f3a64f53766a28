"""What a run will take, before any weight is loaded."""

from __future__ import annotations

from typing import Any

import torch

from posttrain import data, models
from posttrain.recipe import Recipe, dump_recipe
from posttrain.train.logprobs import BLOCK, KEEP

GIB = 2**30
INTERPRETER = 0.9  # GiB that Python, torch, transformers and the tokenizer take by themselves


def dry_run(recipe: Recipe) -> str:
    """The resolved recipe, the rows, rollouts and tokens a step, and an estimate of memory, as text."""
    parameters, config = models.size(recipe.model.name)
    train, heldout = data.load(recipe.data)
    s, t = recipe.sampling, recipe.train
    rollouts = t.prompts * s.completions
    memory = estimate(recipe, parameters, config)
    parts = ", ".join(f"{name} {gib:.2f}" for name, gib in memory.items())
    lines = [
        dump_recipe(recipe).rstrip(),
        "",
        f"# model      {recipe.model.name}: {parameters / 1e6:.1f} M parameters",
        f"# rows       {len(train)} to train on, {len(heldout)} held out",
        f"# a step     {t.prompts} prompts x {s.completions} completions = {rollouts} rollouts, "
        f"at most {rollouts * s.max_tokens} tokens"
        + (f"; up to {t.rounds} rounds of dynamic sampling" if t.rounds > 1 else ""),
        f"# the run    {t.steps} steps, {t.steps * t.inner} updates, results in {recipe.output}",
        f"# memory     about {sum(memory.values()):.1f} GiB ({parts})",
    ]
    return "\n".join(lines)


def estimate(recipe: Recipe, parameters: int, config: Any) -> dict[str, float]:
    """Peak memory in GiB by what holds it.

    Activations: what a transformer layer keeps for its backward pass is close to 34 bytes a token and hidden
    unit in 16 bits with 2 bytes an element (Korthikanti et al., arXiv 2205.05198, section 4, without its
    attention term), scaled by this model's feed-forward width; twice that in float32.
    """
    text = config.get_text_config()
    compute = models.compute_type(recipe.model.compute)
    width = torch.finfo(compute).bits // 8
    layers, hidden = text.num_hidden_layers, text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    heads = text.num_attention_heads
    kv = (getattr(text, "num_key_value_heads", None) or heads) * (
        getattr(text, "head_dim", None) or hidden // heads
    )
    s, t = recipe.sampling, recipe.train
    rows = max(t.prompts * s.completions, 128)
    one_layer = width * (13 * hidden + 6 * inner)
    # With checkpointing a layer keeps its input, and one layer at a time the rest.
    per_token = 4 * hidden * layers + one_layer if t.activation_checkpointing else layers * one_layer
    memory = {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "engine's copy": 0 if compute == torch.float32 else width * parameters,
        "merged copies": width * parameters,
        "cache": 2 * layers * kv * width * min(rows, 128) * (s.max_tokens + 128),
        "activations": t.tokens * per_token,
        "logits": min(KEEP, t.tokens * text.vocab_size * width) + 3 * 4 * BLOCK * text.vocab_size,
    }
    if t.beta:
        memory["reference"] = (4 + width) * parameters
    return {"interpreter": INTERPRETER} | {name: size / GIB for name, size in memory.items() if size}
