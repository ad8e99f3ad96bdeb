"""Runnable examples. Nothing in here is needed by the library, and nothing in here imports it."""
