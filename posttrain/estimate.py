"""What a run will take, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from posttrain import data, models
from posttrain.kinds import Export, Sft
from posttrain.plan import Planned
from posttrain.recipe import Judged, Model, Rates, Recipe, Stage, dump_recipe
from posttrain.recipe_data import STAGE
from posttrain.stages import Staged, dump, kind_of
from posttrain.train.logprobs import BLOCK, KEEP

GIB = 2**30
INTERPRETER = 0.9  # GiB that Python, torch, transformers and the tokenizer take by themselves


def dry_run(recipe: Recipe) -> str:
    """The resolved recipe, the rows, rollouts and tokens a step, and an estimate of memory, as text."""
    parameters, config = models.size(recipe.model)
    train, heldout = data.load(recipe.data)
    t = recipe.train
    lines = [
        dump_recipe(recipe).rstrip(),
        "",
        f"# model      {recipe.model.name}: {_parameters(parameters)}",
        f"# rows       {len(train)} to train on, {len(heldout)} held out",
        f"# a step     {_step(recipe)}",
        f"# the run    {t.steps} steps, {t.steps * t.inner} updates, results in {recipe.output}",
        f"# memory     {_memory(estimate(recipe, parameters, config))}",
    ]
    return "\n".join(lines)


def dry_run_stages(staged: Staged, planned: Sequence[Planned]) -> str:
    """The resolved recipe, what would be done with each stage and why, and what each takes, as text.

    Raises:
        PosttrainError: a base model that cannot be had.
    """
    lines = [dump(staged).rstrip(), ""]
    for place, one in enumerate(planned, 1):
        stage = one.stage
        lines.append(f"# {place}. {stage.name} ({kind_of(stage)}), {one.state} in {one.folder}")
        lines += [f"#    {one.why}"] if one.why else []
        model = _base(staged, stage)
        parameters, config = models.size(model)
        lines.append(f"#    {model.name}: {_parameters(parameters)}")
        if isinstance(stage, Recipe):
            lines.append(f"#    {stage.train.steps} steps, each {_step(stage)}")
            lines.append(f"#    memory {_memory(estimate(stage, parameters, config))}")
        elif isinstance(stage, Sft):
            lines.append(f"#    memory {_memory(estimate_sft(stage, parameters, config))}")
    return "\n".join(lines)


def _base(staged: Staged, stage: Stage) -> Model:
    """The model that a stage begins with, by the base model that its line of stages began with."""
    model, layers, vision = _model(stage), None, None
    while True:
        layers = model.layers if layers is None else layers
        vision = vision or model.vision
        if not model.name.startswith(STAGE):
            return model.model_copy(update={"layers": layers, "vision": vision})
        name = model.name.removeprefix(STAGE)
        model = next(_model(earlier) for earlier in staged.stages if earlier.name == name)


def _model(stage: Stage) -> Model:
    assert isinstance(stage, (Judged, Export)), "every kind has a model"
    return stage.model


def _step(recipe: Recipe) -> str:
    s, t = recipe.sampling, recipe.train
    rollouts = t.prompts * s.completions
    more = f"; up to {t.rounds} rounds of dynamic sampling" if t.rounds > 1 else ""
    what = f"{t.prompts} prompts x {s.completions} completions = {rollouts} rollouts"
    return f"{what}, at most {rollouts * s.max_tokens} tokens{more}"


def _parameters(by_part: dict[str, int]) -> str:
    eyes = ", ".join(f"{part} {by_part[part]:,}" for part in ("tower", "connector") if part in by_part)
    return f"{sum(by_part.values()) / 1e6:.1f} M parameters" + (f" ({eyes})" if eyes else "")


def _learnt(by_part: dict[str, int], rates: Rates) -> int:
    kept = {part for part, rate in rates.items() if not rate}
    return sum(count for part, count in by_part.items() if part not in kept)


def _memory(memory: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {gib:.2f}" for name, gib in memory.items())
    return f"about {sum(memory.values()):.1f} GiB ({parts})"


def estimate(recipe: Recipe, parameters: dict[str, int], config: Any) -> dict[str, float]:
    """Peak memory in GiB by what holds it; of a tower its weights, not what it keeps of the pictures.

    parameters, config: as models.size gives them.
    """
    text = config.get_text_config()
    compute = models.compute_type(recipe.model.compute)
    width = torch.finfo(compute).bits // 8
    layers, hidden = text.num_hidden_layers, text.hidden_size
    heads = text.num_attention_heads
    kv = (getattr(text, "num_key_value_heads", None) or heads) * (
        getattr(text, "head_dim", None) or hidden // heads
    )
    s, t = recipe.sampling, recipe.train
    rows = max(t.prompts * s.completions, 128)
    whole, learnt, language = sum(parameters.values()), _learnt(parameters, t.rates), parameters["language"]
    memory = {
        "weights": 4 * whole,
        "gradients": 4 * learnt,
        "optimizer": 8 * learnt,
        "engine's copy": 0 if compute == torch.float32 else width * whole,
        "merged copies": width * language,
        "cache": 2 * layers * kv * width * min(rows, 128) * (s.max_tokens + 128),
        "activations": t.tokens * _kept(text, width, t.activation_checkpointing),
        "logits": min(KEEP, t.tokens * text.vocab_size * width) + 3 * 4 * BLOCK * text.vocab_size,
    }
    if t.beta:
        memory["reference"] = 4 * whole + width * language
    return {"interpreter": INTERPRETER} | {name: size / GIB for name, size in memory.items() if size}


def estimate_sft(stage: Sft, parameters: dict[str, int], config: Any) -> dict[str, float]:
    """As `estimate`, with every row as long as `max_length` allows."""
    text, t = config.get_text_config(), stage.train
    width = torch.finfo(models.compute_type(stage.model.compute)).bits // 8
    tokens = t.rows * t.max_length
    whole = sum(parameters.values())
    # Beside adapters the connector learns whole; they are a percent or so of the rest.
    learning = {part: count for part, count in parameters.items() if t.lora is None or part == "connector"}
    learnt = _learnt(learning, t.rates)
    memory = {
        "weights": 4 * whole,
        "gradients": 4 * learnt,
        "optimizer": 8 * learnt,
        "cast weights": 0 if width == 4 else width * whole,
        "activations": tokens * _kept(text, width, t.activation_checkpointing),
        "logits": tokens * text.vocab_size * (width + 4 + 4),
    }
    return {"interpreter": INTERPRETER} | {name: size / GIB for name, size in memory.items() if size}


def _kept(text: Any, width: int, checkpointing: bool) -> int:
    """Bytes a token that the layers keep for their backward pass.

    Close to 34 bytes a layer and hidden unit in 16 bits (Korthikanti et al., arXiv 2205.05198, section 4,
    without its attention term), scaled by this model's feed-forward width; twice that in float32.
    """
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    one_layer = width * (13 * text.hidden_size + 6 * inner)
    # With checkpointing a layer keeps its input, and one layer at a time the rest.
    layers = text.num_hidden_layers
    return 4 * text.hidden_size * layers + one_layer if checkpointing else layers * one_layer
