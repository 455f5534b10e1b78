"""Traces: recorded arrivals, read from the public data sets' own files, checked, converted, or generated.

A `Trace` is the one form everything past a loader sees: counts per function and minute, and what is known of
durations, memory and triggers. Counts are dense, 4 bytes a function-minute (5.8 kB a function-day).
"""
