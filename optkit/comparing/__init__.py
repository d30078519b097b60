"""Runs and artifacts held against one another: figures, baselines, locks, differences."""
