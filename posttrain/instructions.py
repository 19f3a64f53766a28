"""Small requests with constraints that a rule can check: "Write two sentences about the sea."

A task of our own, registered with reasoning-gym as `posttrain_instructions`: general instructions beside
sums, for the reward `constraints`. A row has no answer to compare with; what a response has to keep to stands
in `constraints`, and the question says all of it in words.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from reasoning_gym.factory import ProceduralDataset, register_dataset

NAME = "posttrain_instructions"
# What to write about, and words that suit it.
SUBJECTS = {
    "the sea": ("blue", "waves", "fish"),
    "a garden": ("green", "flowers", "soil"),
    "the moon": ("night", "bright", "sky"),
    "a cat": ("soft", "paws", "sleep"),
    "a dog": ("loyal", "tail", "walk"),
    "winter": ("snow", "cold", "white"),
    "summer": ("sun", "warm", "holiday"),
    "autumn": ("leaves", "brown", "wind"),
    "spring": ("flowers", "rain", "fresh"),
    "a forest": ("trees", "quiet", "green"),
    "a mountain": ("high", "climb", "snow"),
    "a river": ("water", "bridge", "flows"),
    "rain": ("umbrella", "clouds", "wet"),
    "bread": ("oven", "flour", "fresh"),
    "a kitchen": ("cook", "table", "knife"),
    "a library": ("books", "quiet", "read"),
    "a school": ("teacher", "learn", "friends"),
    "a train": ("station", "fast", "window"),
    "a bicycle": ("wheels", "ride", "road"),
    "an old house": ("door", "roof", "dust"),
    "a market": ("fruit", "busy", "money"),
    "a birthday": ("cake", "friends", "candles"),
    "music": ("song", "dance", "loud"),
    "a painting": ("colour", "brush", "wall"),
    "football": ("ball", "team", "goal"),
    "chess": ("king", "board", "think"),
    "a farmer": ("field", "early", "cows"),
    "a doctor": ("help", "hospital", "care"),
    "a baker": ("bread", "morning", "sugar"),
    "a lighthouse": ("light", "ships", "storm"),
    "an island": ("sand", "boat", "palm"),
    "a desert": ("sand", "hot", "dry"),
    "the sky at night": ("stars", "dark", "moon"),
    "breakfast": ("egg", "coffee", "morning"),
    "tea": ("cup", "hot", "leaves"),
    "a robot": ("metal", "help", "work"),
    "space travel": ("rocket", "earth", "far"),
    "friendship": ("trust", "share", "laugh"),
    "a long walk": ("shoes", "path", "tired"),
    "a small town": ("street", "quiet", "shop"),
}
# What to list, and one of each.
LISTED = {
    "animals": "horse",
    "fruits": "apple",
    "vegetables": "carrot",
    "colours": "red",
    "trees": "oak",
    "things made of wood": "table",
    "sports": "tennis",
    "tools": "hammer",
    "musical instruments": "piano",
    "things in a kitchen": "spoon",
    "jobs": "teacher",
    "drinks": "water",
    "birds": "owl",
    "kinds of weather": "rain",
    "school subjects": "history",
    "things to do on a rainy day": "read",
}
ASKS = (
    "Write about {subject}.",
    "Describe {subject}.",
    "Tell me about {subject}.",
    "Say something about {subject}.",
    "Write a short text about {subject}.",
)
LISTS = ("List {n} {things}.", "Name {n} {things}.", "Give me {n} {things}.")
TABLES = (
    "Give a few facts about {subject}.",
    "Describe {subject} with a few keys and values.",
    "Tell me what you know about {subject}.",
)
BULLETS = (
    "Write each of them as a bullet point: a line of its own that begins with a dash.",
    "Use bullet points, one on each line, with a dash before it.",
)
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
STARTS = ("Once upon a time", "Let me tell you", "Here is", "Most people", "I think")
ENDS = ("That is all.", "The end.", "And so it goes.", "What do you think?")
MARKERS = ("P.S.", "P.P.S.")
# How the plain ones are said.
SAID = {
    "lowercase": ("Use only lowercase letters.", "Write everything in small letters, without any capitals."),
    "uppercase": ("Use only capital letters.", "Write everything in capital letters."),
    "no_commas": ("Do not use any commas.", "Write it without commas."),
    "quoted": ("Put the whole answer in quotation marks.", "Begin and end the answer with quotation marks."),
    "json": ("Answer in JSON, with nothing around it.", "The whole answer has to be valid JSON."),
}
# What a constraint lays hold of. Two that share a place may be at odds, so no row has both.
PLACES = {
    "keyword": "word",
    "words": "length",
    "sentences": "length",
    "paragraphs": "length",
    "bullets": "length start end",
    "starts_with": "start case",
    "ends_with": "end case",
    "lowercase": "case",
    "uppercase": "case",
    "no_commas": "commas",
    "quoted": "start end",
    "json": "length start end case commas",
    "postscript": "length end case",
}
OF_LISTS = ("keyword", "lowercase", "uppercase", "no_commas")
OF_TEXTS = tuple(kind for kind in PLACES if kind not in ("bullets", "json"))

Constraint = dict[str, Any]


@dataclass
class Config:
    """seed: of all rows; size: how many."""

    seed: int | None = None
    size: int = 500

    def validate(self) -> None:
        """Nothing can be wrong: reasoning-gym asks for the method."""


class Instructions(ProceduralDataset):
    """Rows with "question", "answer" (None), "constraints" (a list of one or two objects, as the reward
    `constraints` reads them) and "metadata".

    Example: "Describe a garden. Use at most 30 words. Do not use any commas." with the constraints
    [{"kind": "words", "max": 30}, {"kind": "no_commas"}]
    """

    config: Config

    def __init__(self, config: Config):
        super().__init__(config=config, seed=config.seed, size=config.size)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}/{idx}")
        shape = rng.choices(("text", "list", "table"), (7, 2, 1))[0]
        if shape == "list":
            (things, example), n = rng.choice(list(LISTED.items())), rng.randint(2, 5)
            ask, near = rng.choice(LISTS).format(n=NUMBERS[n], things=things), (example,)
            bullets = rng.choice(BULLETS)
            made = [({"kind": "bullets", "min": n, "max": n}, bullets)]
        else:
            subject, near = rng.choice(list(SUBJECTS.items()))
            ask = rng.choice(TABLES if shape == "table" else ASKS).format(subject=subject)
            made = [_constraint("json", near, rng)] if shape == "table" else []
        others = {"text": OF_TEXTS, "list": OF_LISTS, "table": ("keyword",)}[shape]
        for _ in range(rng.randint(1, 2) - len(made)):
            taken = {place for constraint, _ in made for place in PLACES[constraint["kind"]].split()}
            kind = rng.choice([kind for kind in others if taken.isdisjoint(PLACES[kind].split())])
            made.append(_constraint(kind, near, rng))
        return {
            "question": " ".join([ask, *(text for _, text in made)]),
            "answer": None,
            "constraints": [constraint for constraint, _ in made],
            "metadata": {"source_index": idx, "shape": shape},
        }


def _constraint(kind: str, near: tuple[str, ...], rng: random.Random) -> tuple[Constraint, str]:
    """A constraint of a kind, and how it is said. near: words that suit the subject."""
    if kind == "keyword":
        word = rng.choice(near)
        if rng.random() < 0.3:
            return {"kind": kind, "word": word, "max": 0}, f'Do not use the word "{word}".'
        text = rng.choice(('Use the word "{}".', 'The word "{}" has to be in it.'))
        return {"kind": kind, "word": word}, text.format(word)
    if kind == "words":
        n = rng.choice((15, 20, 30, 40))
        if rng.random() < 0.5:
            return {"kind": kind, "max": n}, rng.choice(
                (f"Use at most {n} words.", f"Use no more than {n} words.")
            )
        return {"kind": kind, "min": n}, rng.choice((f"Use at least {n} words.", f"Use {n} words or more."))
    if kind == "sentences":
        n = rng.randint(1, 4)
        plural = "" if n == 1 else "s"
        text = rng.choice(("Write exactly {} sentence{}.", "The answer has to be {} sentence{} long."))
        return {"kind": kind, "min": n, "max": n}, text.format(NUMBERS[n], plural)
    if kind == "paragraphs":
        n = rng.randint(2, 3)
        text = f"Write {NUMBERS[n]} paragraphs, with an empty line between one and the next."
        return {"kind": kind, "min": n, "max": n}, text
    if kind == "starts_with":
        start = rng.choice(STARTS)
        return {"kind": kind, "text": start}, rng.choice(('Begin with "{}".', 'Start with "{}".')).format(
            start
        )
    if kind == "ends_with":
        end = rng.choice(ENDS)
        return {"kind": kind, "text": end}, rng.choice(
            ('End with "{}"', 'The last words have to be "{}"')
        ).format(end)
    if kind == "postscript":
        marker = rng.choice(MARKERS)
        text = 'Add a postscript at the end: a line of its own that begins with "{}"'
        return {"kind": kind, "marker": marker}, text.format(marker)
    return {"kind": kind}, rng.choice(SAID[kind])


register_dataset(NAME, Instructions, Config)
