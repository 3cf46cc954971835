"""What the inputs of linear maps look like on calibration samples: the evidence of criteria that need no gradient.

statistics.py   what is summed over tokens; one class a statistic
calls.py        how a model calls its layers
probe.py        hooks that sum up, each input once
gap.py          what a pruned model lacks behind a linear map
needs.py        what a calibrated pruner measures
walk.py         the layers one after another, each on what the layers before it now give
"""
