"""The demo: a broker, a stand-in cloud and a real daemon on this machine, and four acts.

`stage` sets the three up, `acts` plays, `cloud` is the stand-in's own process.
"""
