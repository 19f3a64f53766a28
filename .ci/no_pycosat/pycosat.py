"""Stand-in for pycosat, see pyproject.toml beside it: imports, and says what is missing when it is used."""


def itersolve(*args, **kwargs):
    raise RuntimeError("zebra puzzles need pycosat: install a C compiler, python3-dev and pycosat==0.6.6")


solve = itersolve
