"""The Python language reference as text, from `pydoc_data.topics`: English about code, on every machine that runs Python.

A record is one topic. The split is by a hash of the topic's name, so that it does not depend on the Python version:
"test" holds the topics whose hash falls into one of 8 buckets, "train" all others. Licence of the text: PSF-2.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from zoo.data import Sample

BUCKETS = 8


class Pydoc:
    """Data source "pydoc": splits "train" and "test"."""

    splits = ("train", "test")

    def records(self, split: str) -> Iterator[Sample]:
        """Yield the topics of a split by name."""
        from pydoc_data.topics import topics

        for name, text in sorted(topics.items()):
            if held_out(name) == (split == "test"):
                yield Sample({"text": text}, f"topic {name}")


def held_out(topic: str) -> bool:
    """Whether a topic belongs to the test split."""
    return int(hashlib.sha256(topic.encode()).hexdigest(), 16) % BUCKETS == 0
