"""Edge TPU: its compiler, and what runs on the chip."""
