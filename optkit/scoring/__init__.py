"""Task metrics measured: predictions and targets in, a value with its confidence interval out."""
