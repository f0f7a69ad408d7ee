"""Change a running Linux kernel, function by function and process by process."""

__version__ = "0.1.0"
