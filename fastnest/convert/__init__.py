"""What fastnest does with a user's model: known blocks made fast, and a table of what runs and why."""

from .explain import Explanation, ExplanationRow, explain
from .swap import accelerate, restore

__all__ = ["Explanation", "ExplanationRow", "accelerate", "explain", "restore"]
