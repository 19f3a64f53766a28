"""1.0 where the answer makes the target from the given numbers, each used once, else 0.0; None without them.

The numbers and the target are the columns `nums` and `target`, or `numbers` and `target` in `metadata`, as
reasoning-gym's countdown has them. The answer, given in `form` as in accuracy, is an expression of whole
numbers, +, -, *, / (also ×, ÷, \\times, \\div) and brackets, worked out exactly; an equals sign may have the
target beside it. It is read by a parser that knows nothing else, and never run.
"""

import ast
import re
from collections import Counter
from fractions import Fraction

from posttrain.types import PosttrainError
from posttrain.verify import Form, extract, text_of

LONGEST = 300  # characters of an expression
SPELT = {
    "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "\\times": "*", "\\cdot": "*", "\\div": "/",
    "\\left": "", "\\right": "", "[": "(", "]": ")", "$": "",
}  # fmt: skip
PLAIN = re.compile(r"[\d\s+\-*/()]+")
SUM = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def countdown(completions, nums=None, target=None, metadata=None, form: Form = "answer_tag", **columns):
    nothing = [None] * len(completions)
    rows = zip(completions, nums or nothing, target or nothing, metadata or nothing, strict=True)
    return [judge(text_of(said), mine, wanted, about, form) for said, mine, wanted, about in rows]


def judge(text, nums, target, about, form):
    if nums is None and isinstance(about, dict):
        nums, target = about.get("numbers"), about.get("target")
    if nums is None or target is None:
        return None
    if not isinstance(nums, list) or not all(isinstance(n, int) for n in [*nums, target]):
        raise PosttrainError(f"countdown: {nums!r} for {target!r} are not whole numbers and a target")
    said = extract(text, form)
    return 0.0 if said is None else float(worked_out(said, target) == (target, Counter(nums)))


def worked_out(said, target):
    """(value, the numbers used) of an expression, or None where it is none."""
    if len(said) > LONGEST:
        return None
    for spelling, plain in SPELT.items():
        said = said.replace(spelling, plain)
    sides = [side.strip() for side in said.split("=")]
    if len(sides) == 2 and str(target) in sides:
        sides.remove(str(target))
    if len(sides) != 1 or not PLAIN.fullmatch(sides[0]):
        return None
    used = Counter()
    try:
        return value_of(ast.parse(sides[0].strip(), mode="eval").body, used), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def value_of(node, used):
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used[node.value] += 1
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in SUM:
        return SUM[type(node.op)](value_of(node.left, used), value_of(node.right, used))
    raise ValueError("neither a whole number nor a sum")  # ** and // and signs
