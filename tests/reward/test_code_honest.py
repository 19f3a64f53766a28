"""A hundred honest programs, ten kinds with ten settings each, score full in the code reward."""

from __future__ import annotations

import json
import math

import pytest

REWARD = "code"
pytestmark = pytest.mark.usefixtures("bubblewrap")

SUM = """
import sys
numbers = [int(word) for word in {}.split()]
print(sum(numbers), max(numbers))
"""
READS = ["sys.stdin.read()", "open(0).read()", "'\\n'.join(sys.stdin)", "open('/dev/stdin').read()"]

RECURSION = """
import sys
from functools import lru_cache
sys.setrecursionlimit(10**6)

@lru_cache(maxsize=None)
def ways(k):
    return k if k < 2 else (ways(k - 1) + ways(k - 2)) % 1_000_007
"""

METHOD = """
from typing import List

class Solution:
    def twoSum(self, nums: List[int], target: int) -> List[int]:
        seen = {}
        for i, x in enumerate(nums):
            if target - x in seen:
                return seen[target - x], i
            seen[x] = i
"""

UNICODE = """
while True:
    try:
        line = input()
    except EOFError:
        break
    print(line[::-1].upper())
"""

LARGE = """
import math
def f(k):
    return math.factorial(k)
if __name__ == "__main__":
    print(f(int(input())))
"""

FLOATS = """
def f(x):
    low, high = 0, x + 1
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * middle < x else (low, middle)
    return low
if __name__ == "__main__":
    print("root:", f(float(input())))
"""

CLASSES = """
from __future__ import annotations
from dataclasses import dataclass, field
from enum import Enum

class Kind(Enum):
    ODD = 1
    EVEN = 0

@dataclass(order=True)
class Item:
    weight: int
    kind: Kind = field(compare=False)

def f(weights):
    items = sorted(Item(w, Kind(w % 2)) for w in weights)
    print("sorted:", items)
    return [(item.weight, item.kind.name.lower()) for item in items]
"""

USES = [  # standard modules, an expression over them, its value
    ("collections", "sorted(collections.Counter('abca').items())", [["a", 2], ["b", 1], ["c", 1]]),
    ("datetime", "str(datetime.date(2024, 2, 28) + datetime.timedelta(2))", "2024-03-01"),
    ("decimal", "str(decimal.Decimal('0.1') + decimal.Decimal('0.2'))", "0.3"),
    ("fractions", "str(sum(fractions.Fraction(1, k) for k in range(1, 5)))", "25/12"),
    ("hashlib", "hashlib.sha256(b'x').hexdigest()[:8]", "2d711642"),
    ("heapq, random", "heapq.nsmallest(2, random.sample(range(9), 9))", [0, 1]),
    ("itertools, operator", "[*itertools.accumulate([1, 2, 3], operator.mul)]", [1, 2, 6]),
    ("re, string", "re.findall(f'[{string.digits}]+', 'a1b22')", ["1", "22"]),
    ("asyncio", "asyncio.run(asyncio.sleep(0, 5))", 5),
    ("tempfile", "tempfile.TemporaryFile('w+').write('five')", 4),
]

SEARCH = """
from collections import deque
h, w = map(int, input().split())
grid = [input() for _ in range(h)]
seen, queue = {(0, 0): 0}, deque([(0, 0)])
while queue:
    y, x = queue.popleft()
    for a, b in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
        if 0 <= a < h and 0 <= b < w and grid[a][b] == "." and (a, b) not in seen:
            seen[a, b] = seen[y, x] + 1
            queue.append((a, b))
print("Case #1: %d" % seen[h - 1, w - 1])
"""

THREADS = """
import threading
def f(names):
    found = {}
    def work(name):
        found[name] = {"size": len(name), "parts": tuple(name), "none": None, "ok": True}
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
"""


def ways(k: int) -> int:
    a, b = 0, 1
    for _ in range(k):
        a, b = b, (a + b) % 1_000_007
    return a


def call(name: str, *args: object, returns: object) -> dict[str, object]:
    return {"call": name, "args": args, "returns": returns}


def says(stdin: str, stdout: str) -> dict[str, object]:
    return {"stdin": stdin, "stdout": stdout}


def honest(n: int) -> list[tuple[str, list[dict[str, object]]]]:
    """A program of each kind with its tests; n, from 1 to 10, sets them."""
    numbers = [(7 * k * n) % 31 - 9 for k in range(n + 3)]
    summed = says(" ".join(map(str, numbers)), f"{sum(numbers)} {max(numbers)}\n")
    words = ["žluť", "数学", "🙂", "straße"] * n
    factorial = math.factorial(40 * n)
    parities = [[w, ("even", "odd")[w % 2]] for w in sorted([n, 2, 1])]
    module, expression, value = USES[n - 1]
    names = ["é" * n, "b"]
    found = {w: {"size": len(w), "parts": list(w), "none": None, "ok": True} for w in names}
    return [
        (SUM.format(READS[n % 4]), [summed, says("1\n2\n", "3 2")]),
        (RECURSION, [call("ways", k, returns=ways(k)) for k in (n, 50 * n, 1000 * n)]),
        (METHOD, [call("twoSum", list(range(n + 2)), 2 * n + 1, returns=[n, n + 1])]),
        (UNICODE, [says("\n".join(words), "\n".join(word[::-1].upper() for word in words))]),
        (LARGE, [call("f", 40 * n, returns=factorial), says(f"{40 * n}\n", str(factorial))]),
        (FLOATS, [call("f", n / 7, returns=(n / 7) ** 0.5), says(str(n * n), f"root: {float(n):.6f}")]),
        (CLASSES, [call("f", [n, 2, 1], returns=parities)]),
        (f"import {module}\ndef f():\n    return {expression}", [call("f", returns=value)]),
        (SEARCH, [says(f"2 {n + 1}\n{'.' * n}#\n{'.' * (n + 1)}\n", f"Case #1: {n + 1}")]),
        (THREADS, [call("f", names, returns=found)]),
    ]


def test_a_hundred_honest_programs(reward):
    rows = [row for n in range(1, 11) for row in honest(n)]
    assert len(rows) == 100
    completions = [f"<think>Well.</think>\nSo:\n```python\n{program}\n```\n" for program, _ in rows]
    scores = reward(completions, tests=[json.dumps(tests) for _, tests in rows], seconds=60.0)
    assert not [program for (program, _), score in zip(rows, scores, strict=True) if score != 1.0]
