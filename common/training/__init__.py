"""The loop, what happens at its points, and folders of runs."""
