"""What a user reruns: a claim, its table, its figure."""

# Before torch, which reads once how its threads wait (metaopt.base.idle_threads).
import metaopt as metaopt
