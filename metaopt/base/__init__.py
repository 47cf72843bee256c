"""The ground that everything stands on: errors, random streams, files, configurations, processes.

No mathematics but matrices; nothing here knows what is optimised.
"""
