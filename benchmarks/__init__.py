"""Benchmarks: every op beside what a user would run instead."""
