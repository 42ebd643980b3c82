"""`make bench`: runs the benchmarks one after the other."""

from __future__ import annotations

from benchmarks.quality import ecsq, task
from benchmarks.speed import codec, startup, transform


def main() -> None:
    """Run all; each writes build/bench/<name>.json and prints its table."""
    codec.main()
    transform.main()
    ecsq.main()
    task.main()
    startup.main()


if __name__ == "__main__":
    main()
