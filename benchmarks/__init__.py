"""Commands that measure; none of them is a test."""

# Before torch, which reads once how its threads wait (metaopt.base.idle_threads).
import metaopt as metaopt
