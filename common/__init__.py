"""The parts that every experiment script shares; a module imports only from those above it in the README's list."""
