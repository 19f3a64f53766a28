"""What the user can put right; `posttrain.types` hands it on to all who need the other nouns too."""

from __future__ import annotations


class PosttrainError(Exception):
    """Something the user can put right. Its text is shown alone, without a traceback; exit status 2."""
