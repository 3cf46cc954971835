"""How much the loss rises when a part of a model is removed, one part at a time, without any training.

cells.py     what is removed in a cell: a fraction of one weight matrix's weights, or of one site's units
measure.py   the loss without it; the model is the same, bit for bit, before and after
journal.py   finished cells on disk, so that a measurement goes on where it was stopped
report.py    tables and JSON; plot.py the heat map
"""
