"""The parts that every experiment script shares; docs/extending.md has the floor plan."""
