"""What is made from finished tables, without training."""
