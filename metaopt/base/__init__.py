"""What every other folder builds on: errors, random streams, files, configurations, processes.

Nothing here knows what is optimised; the only mathematics is that of dense layers and of losses.
"""
