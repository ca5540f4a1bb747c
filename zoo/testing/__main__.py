"""The fresh process of the contract tests: `python -m zoo.testing` answers the requests of `zoo.testing.fresh`."""

from __future__ import annotations

from zoo.testing.fresh import serve

if __name__ == "__main__":
    serve()
