"""What is measured on a GPU: the grid against cuDNN, its table for `auto`, and the constants of the cost model."""
