"""Figures of what the instruments found."""
