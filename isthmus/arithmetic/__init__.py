"""What floating-point arithmetic does to a network: dyadic grids, rounding bounds, exact evaluation."""
