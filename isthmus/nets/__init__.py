"""Networks that can be saved: for now, sequences of standard layers."""
