"""Facts of this program in one place each, without torch."""
