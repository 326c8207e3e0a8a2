"""Remove the rows and tokens that are kept for the next run; what is used right now stays.

    python -m pipeline.commands.clean_cache

They lie in CACHE, by default under the user's cache. Without this, what was not used for the longest time goes as soon
as all together is more than CACHE_GB.
"""

from __future__ import annotations

import sys

from pipeline.system import cache, config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE: dict[str, str] = {}


def main() -> int:
    """Empty the cache, and say what stays."""
    _, faults = config.only((), sys.argv[1:])
    if faults:
        raise UserError(*faults)
    removed, left = cache.shrink(0)
    used = f"; {left:,} bytes are in use and stay" if left else ""
    say("clean", f"{cache.folder()}: {removed:,} {'entry' if removed == 1 else 'entries'} removed{used}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))
