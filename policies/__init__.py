"""Policies: each decides, for one job in one situation, which route it takes."""
