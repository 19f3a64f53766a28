"""The numbers in the form of lm-evaluation-harness's results_*.json, for tools that read that.

What was mapped:
    results.TASK    the primary metric (accuracy, avg@k) as "exact_match,none": the share of answers that the
                    verifier called right; cons@k as "exact_match,maj@k", since a majority is a filter there;
                    every other metric under its own name, "pass@4,none". Beside each its "…_stderr,…": half
                    of the 95% interval over 1.96. Our intervals are not symmetric near 0 and 1, so there it
                    is an approximation; result.json has the interval. Where there is none: "N/A", as there.
    versions        the revision of the task's data, else their hash, else "N/A"
    configs         data, verifier, samples (repeats), shots and sampling of each task
    n-samples       original: rows of the data; effective: questions that were judged
    n-shot, higher_is_better, group_subtasks (of none), config, date (when result.json was written),
    model_source, model_name, model_name_sanitized, chat_template_sha, transformers_version,
    total_evaluation_time_seconds
What was left out: samples (TASK/*.jsonl holds them), groups, task_hashes (of its own records), git_hash,
pretty_env_info, lm_eval_version (it did not make these numbers; posttrain_version says what did).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.evaluate.metrics import Z95, number
from posttrain.evaluate.runfolder import Estimate
from posttrain.harness.readback import Evaluation, Task, part


def lm_eval(folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """The whole file. Tasks without numbers are left out."""
    tasks = [task for task in evaluation.tasks if task.metrics]
    result, seconds = evaluation.result, number(evaluation.result.get("seconds"))
    made = part(tasks[0].result, "made_by") if tasks else {}
    file = folder / "result.json"
    found = {
        "results": {task.name: _results(task) for task in tasks},
        "group_subtasks": {task.name: [] for task in tasks},
        "configs": {task.name: _config(task) for task in tasks},
        "versions": {task.name: _version(task) for task in tasks},
        "n-shot": {task.name: part(task.result, "made_by").get("few_shot") or 0 for task in tasks},
        "higher_is_better": {
            task.name: {_key(task, name)[0]: True for name in task.metrics} for task in tasks
        },
        "n-samples": {task.name: _counts(task) for task in tasks},
        "config": {
            "model": evaluation.engine,
            "model_args": f"pretrained={evaluation.model}",
            "batch_size": None,
            "device": part(result, "machine").get("device"),
            "limit": evaluation.asked.get("limit"),
            "bootstrap_iters": 0,
            "gen_kwargs": part(made, "sampling"),
            "random_seed": made.get("seed"),
        },
        "date": file.stat().st_mtime if file.is_file() else None,
        "transformers_version": part(result, "versions").get("transformers"),
        "posttrain_version": part(result, "versions").get("posttrain") or __version__,
        "model_source": evaluation.engine,
        "model_name": evaluation.model,
        "model_name_sanitized": re.sub(r'["<>:/|\\?*\[\]]+', "__", evaluation.model),
        "chat_template_sha": made.get("template"),
        "total_evaluation_time_seconds": None if seconds is None else str(seconds),
    }
    return _finite(found)


def _key(task: Task, name: str) -> tuple[str, str]:
    """A metric's name and filter there."""
    if name == task.result.get("primary"):
        return "exact_match", "none"
    vote = re.fullmatch(r"cons@(\d+)", name)
    return ("exact_match", f"maj@{vote[1]}") if vote else (name.replace(",", "_"), "none")


def _results(task: Task) -> dict[str, Any]:
    shown: dict[str, Any] = {"alias": task.name}
    for name, found in task.metrics.items():
        metric, kind = _key(task, name)
        shown[f"{metric},{kind}"] = found.accuracy
        shown[f"{metric}_stderr,{kind}"] = _stderr(found)
    return shown


def _stderr(found: Estimate) -> float | str:
    return (found.hi - found.lo) / (2 * Z95) if found.hi > found.lo else "N/A"


def _config(task: Task) -> dict[str, Any]:
    made = part(task.result, "made_by")
    data, sampling = part(made, "data"), part(made, "sampling")
    return {
        "task": task.name,
        "dataset_path": data.get("source"),
        "dataset_kwargs": {"revision": data.get("revision")},
        "output_type": "generate_until",
        "num_fewshot": made.get("few_shot") or 0,
        "repeats": task.planned or 1,
        "generation_kwargs": {**sampling, "do_sample": bool(number(sampling.get("temperature")))},
        "metric_list": [
            {"metric": _key(task, name)[0], "aggregation": "mean", "higher_is_better": True}
            for name in task.metrics
        ],
        "metadata": {
            "version": _version(task),
            "verifier": made.get("verifier"),
            "data_hash": data.get("hash"),
            "template_hash": made.get("template"),
            "warnings": task.warnings,
        },
    }


def _version(task: Task) -> str:
    data = part(part(task.result, "made_by"), "data")
    return str(data.get("revision") or data.get("hash") or "N/A")


def _counts(task: Task) -> dict[str, int | None]:
    judged = number(task.result.get("questions"))
    rows = number(part(part(task.result, "made_by"), "data").get("rows"))
    original, effective = rows if rows is not None else judged, judged
    return {
        "original": None if original is None else int(original),
        "effective": None if effective is None else int(effective),
    }


def _finite(value: Any) -> Any:
    """Without NaN and infinities, which a result.json may hold and JSON does not know."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return number(value) if isinstance(value, float) else value
