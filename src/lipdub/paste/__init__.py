"""Drawn mouths back into the frames: mask, colour, blend."""
