"""What other policies would have cost on this device, by its decision log.

`recorded` reads the log and asks the policies, `estimators` says what that tells, `export` writes
it out flat.
"""
