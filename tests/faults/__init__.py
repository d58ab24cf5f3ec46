"""The first promise, proven under faults: no message is ever lost."""
