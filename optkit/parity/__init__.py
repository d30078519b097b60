"""Numerical parity: what a conversion is measured by (`metrics`) and what it must hold (`bounds`)."""
