"""Faces: found, followed through a video, aligned, smoothed, and kept for the next language."""
