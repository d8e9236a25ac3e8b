"""The harness of faults: `python -m tests.faults`."""
