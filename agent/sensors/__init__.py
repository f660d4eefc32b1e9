"""The device's senses: one file each, one function that reads it.

Absent is not an error and not a zero: what the device lacks reads as None.
"""
