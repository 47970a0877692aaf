"""The storyteller: its stories, its world, its model, its training and its telling."""

from __future__ import annotations

from qlab.story.consistency import consistency, consistency_of
from qlab.story.model import Storyteller, load
from qlab.story.stories import Story, corpus, next_stories, read_stories, texts, unread_stories
from qlab.story.telling import tell

__all__ = [
    "Story",
    "Storyteller",
    "consistency",
    "consistency_of",
    "corpus",
    "load",
    "next_stories",
    "read_stories",
    "tell",
    "texts",
    "unread_stories",
]
