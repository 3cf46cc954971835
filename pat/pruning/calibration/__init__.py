"""What linear maps see on calibration samples, without a training step: their inputs, and what the loss feels of their
outputs.

statistics.py   what is summed over tokens; one class a statistic
calls.py        how a model calls its layers
probe.py        hooks that sum up, each input once
gap.py          what a pruned model lacks behind a linear map
needs.py        what a calibrated pruner measures
walk.py         the layers one after another, each on what the layers before it now give
back.py         the layers from the last to the first: the loss's gradients
"""
