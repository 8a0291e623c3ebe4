"""Phonemes in time, classes by what the lips do, and synthetic speech."""
