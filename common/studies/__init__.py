"""What several scripts share: the studies."""
