"""Numbers in sentences."""


def counted(count: int, what: str) -> str:
    """Return how many there are in words: `1 row`, `2,000 rows`."""
    return f"{count:,} {what}{'s' * (count != 1)}"
